use super::*;

fn nothing(_: &str) -> Option<String> {
    None
}

fn user() -> Surroundings<'static> {
    Surroundings { uid: 1000, env: &|name| (name == "HOME").then(|| "/home/u".to_owned()) }
}

fn from_toml(text: &str) -> Result<Config, ConfigError> {
    Config::resolve(Layer::from_toml(text, Path::new("s.toml"))?, &user())
}

fn error_of(text: &str) -> String {
    from_toml(text).map(|config| format!("accepted: {config:?}")).unwrap_err().to_string()
}

#[test]
fn a_full_file_is_read() {
    let config = from_toml(
        r#"
        run_dir = "/run/x"
        state_dir = "/var/x"
        drain_timeout = "2m"
        log = { level = "debug", format = "json" }

        [[mount]]
        prefix = "/storage/"
        url = "s3://bucket/path"
        tree = "/data/tree"
        placement = "translated"
        durability = "local"
        max_lag = "500ms"
        dirty_limit = "2GiB"
        request_timeout = "30s"
        audit_interval = "1m"
        upload_parallelism = 4
        hydrate = "on-open"
        cache_size = "2GiB"
        patience = "5s"
        quota_bytes = "10GiB"
        quota_inodes = 1000000
        guard = "leases"
        "#,
    )
    .unwrap();
    assert_eq!(config.run_dir, Path::new("/run/x"));
    assert_eq!(config.state_dir, Path::new("/var/x"));
    assert_eq!(config.drain_timeout, Duration::from_secs(120));
    assert_eq!(config.log, Log { level: "debug".into(), format: LogFormat::Json });
    let expected = Mount {
        prefix: "/storage".into(),
        url: "s3://bucket/path".into(),
        tree: Some("/data/tree".into()),
        placement: Placement::Translated,
        durability: Durability::Local,
        max_lag: Duration::from_millis(500),
        dirty_limit: 2 << 30,
        request_timeout: Duration::from_secs(30),
        audit_interval: Duration::from_secs(60),
        upload_parallelism: 4,
        hydrate: Hydrate::OnOpen,
        cache_size: Some(2 << 30),
        patience: Duration::from_secs(5),
        quota: Quota { bytes: Some(10 << 30), inodes: Some(1_000_000) },
        guard: Guarding::Leases,
    };
    assert_eq!(config.mounts, [expected]);
}

#[test]
fn defaults_are_what_the_reference_says() {
    let config = from_toml("[[mount]]\nprefix = '/storage'\nurl = 'memory:x'\n").unwrap();
    assert_eq!(config.run_dir, Path::new("/dev/shm/storeshim-1000"));
    assert_eq!(config.state_dir, Path::new("/home/u/.local/state/storeshim"));
    assert_eq!(config.drain_timeout, Duration::from_secs(60));
    assert_eq!(config.log, Log { level: "info".into(), format: LogFormat::Human });
    let mount = &config.mounts[0];
    assert_eq!((mount.placement, mount.durability), (Placement::Auto, Durability::Remote));
    assert_eq!((mount.max_lag, mount.audit_interval), (Duration::from_secs(1), Duration::from_secs(30)));
    assert_eq!((mount.dirty_limit, mount.request_timeout), (1 << 30, Duration::ZERO));
    assert_eq!((mount.upload_parallelism, &mount.tree), (8, &None));
    assert_eq!((mount.hydrate, mount.guard, mount.cache_size), (Hydrate::Auto, Guarding::Auto, None));
}

#[test]
fn default_directories_depend_on_the_user() {
    let root = Config::resolve(Layer::default(), &Surroundings { uid: 0, env: &nothing }).unwrap();
    assert_eq!(root.run_dir, Path::new("/run/storeshim"));
    assert_eq!(root.state_dir, Path::new("/var/lib/storeshim"));

    let xdg = |name: &str| match name {
        "XDG_RUNTIME_DIR" => Some("/run/user/7".to_owned()),
        "XDG_STATE_HOME" => Some("/s".to_owned()),
        _ => None,
    };
    let session = Config::resolve(Layer::default(), &Surroundings { uid: 7, env: &xdg }).unwrap();
    assert_eq!(session.run_dir, Path::new("/run/user/7/storeshim"));
    assert_eq!(session.state_dir, Path::new("/s/storeshim"));

    let homeless = Config::resolve(Layer::default(), &Surroundings { uid: 7, env: &nothing });
    assert!(homeless.unwrap_err().to_string().contains("state_dir"));
}

/// Every malformed value and every unknown key is refused with the file and the line that it stands on.
#[test]
fn errors_name_file_and_line() {
    let mount = "[[mount]]\nprefix = '/storage'\nurl = 's3://b/p'\n";
    let cases = [
        ("\n\ncolour = 'red'\n".to_owned(), 3, "unknown key `colour`"),
        ("run_dir = 'run'\n".to_owned(), 1, "relative path"),
        ("\nstate_dir = 7\n".to_owned(), 2, "invalid type"),
        ("\n\n\ndrain_timeout = '60'\n".to_owned(), 4, "not a duration"),
        ("[log]\nlevel = 'info'\nformat = 'xml'\n".to_owned(), 3, "unknown variant `xml`"),
        ("[log]\nlevel = 'a=b=c'\n".to_owned(), 2, "not a log level"),
        ("[log]\nfile = '/x'\n".to_owned(), 2, "unknown key `file`"),
        ("run_dir = '/a'\nrun_dir = '/b'\n".to_owned(), 2, "duplicate key"),
        ("run_dir = \n".to_owned(), 1, ""),
        ("\n[[mount]]\nprefix = '/storage'\n".to_owned(), 2, "missing key `url`"),
        ("\n[[mount]]\nurl = 's3://b'\n".to_owned(), 2, "missing key `prefix`"),
        ("[[mount]]\nprefix = 'storage'\nurl = 's3://b'\n".to_owned(), 2, "not an absolute path"),
        ("[[mount]]\nprefix = '/'\nurl = 's3://b'\n".to_owned(), 2, "not an absolute path"),
        ("[[mount]]\nprefix = '/a/../b'\nurl = 's3://b'\n".to_owned(), 2, "`..` component"),
        ("[[mount]]\nprefix = '/s'\nurl = 'bucket'\n".to_owned(), 3, "not a volume URL"),
        (format!("{mount}placement = 'here'\n"), 4, "unknown variant `here`"),
        (format!("{mount}durability = 'none'\n"), 4, "unknown variant `none`"),
        (format!("{mount}tree = 'tree'\n"), 4, "relative path"),
        (format!("{mount}max_lag = '0s'\n"), 4, "longer than zero"),
        (format!("{mount}max_lag = 1\n"), 4, "invalid type"),
        (format!("{mount}dirty_limit = '1G'\n"), 4, "not a size"),
        (format!("{mount}dirty_limit = '1MiB'\n"), 4, "at least 16MiB"),
        (format!("{mount}request_timeout = 'never'\n"), 4, "not a duration"),
        (format!("{mount}audit_interval = '5'\n"), 4, "not a duration"),
        (format!("{mount}upload_parallelism = 0\n"), 4, "from 1 to 256"),
        (format!("{mount}upload_parallelism = '8'\n"), 4, "invalid type"),
        (format!("{mount}{mount}speed = 1\n"), 7, "unknown key `speed`"),
    ];
    for (text, line, why) in cases {
        let error = error_of(&text);
        assert!(error.starts_with(&format!("s.toml line {line}: ")), "{text:?} gave {error:?}");
        assert!(error.contains(why), "{text:?} gave {error:?}");
        assert!(!error.contains('\n'), "{error:?}");
    }
}

#[test]
fn mounts_that_cannot_stand_together_are_refused() {
    let two = |one: &str, other: &str| {
        format!("[[mount]]\nprefix = {one}\nurl = 's3://a'\n[[mount]]\nprefix = {other}\nurl = 's3://b'\n")
    };
    assert!(error_of(&two("'/a'", "'/a/b'")).contains("overlap"));
    assert!(from_toml(&two("'/a'", "'/ab'")).is_ok());
    let same = "[[mount]]\nprefix = '/a'\nurl = 's3://u@x/p'\n[[mount]]\nprefix = '/b'\nurl = 's3://x/p'\n";
    assert!(error_of(same).contains("same volume"));
    let many: String =
        (0..=MAX_MOUNTS).map(|n| format!("[[mount]]\nprefix = '/m{n}'\nurl = 's3://b/{n}'\n")).collect();
    assert!(error_of(&many).contains("at most"));
}

#[test]
fn a_spec_is_read_like_a_table() {
    let mount =
        MountLayer::from_spec("/storage=s3://b/p?region=x,durability=local,upload_parallelism=3").unwrap();
    assert_eq!((mount.prefix.0.as_str(), mount.url.0.as_str()), ("/storage", "s3://b/p?region=x"));
    assert_eq!(mount.durability, Some(Durability::Local));
    assert_eq!(mount.upload_parallelism, Some(layer::Parallelism(3)));
    for (spec, why) in [
        ("/storage", "has no URL"),
        ("/storage=s3://b,fast", "not KEY=VALUE"),
        ("/storage=s3://b,colour=red", "unknown key `colour`"),
        ("/storage=s3://b,max_lag=1", "not a duration"),
        ("/storage=s3://b,max_lag=1s,max_lag=2s", "given twice"),
        ("/storage=s3://b,upload_parallelism=many", "no whole number"),
        ("storage=s3://b", "not an absolute path"),
    ] {
        let error = MountLayer::from_spec(spec).unwrap_err();
        assert!(error.contains(why) && error.contains(spec), "{spec} gave {error}");
    }
}

#[test]
fn flags_win_over_environment_over_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("s.toml");
    std::fs::write(
        &file,
        "run_dir = '/file'\nstate_dir = '/file'\ndrain_timeout = '1s'\n\
         [[mount]]\nprefix = '/storage'\nurl = 's3://file'\nmax_lag = '9s'\ndurability = 'local'\n\
         [[mount]]\nprefix = '/other'\nurl = 's3://other'\n",
    )
    .unwrap();
    let file_name = file.to_str().unwrap().to_owned();
    let env = |name: &str| match name {
        "STORESHIM_CONFIG" => Some(file_name.clone()),
        "STORESHIM_RUN_DIR" | "STORESHIM_STATE_DIR" => Some("/env".to_owned()),
        "STORESHIM_MOUNT" => Some("/storage=s3://env,max_lag=8s /third=s3://third".to_owned()),
        _ => None,
    };
    let around = Surroundings { uid: 1000, env: &env };
    let flags = Layer {
        run_dir: Some(AbsolutePath("/flag".into())),
        mount: vec![MountLayer::from_spec("/storage=s3://flag").unwrap()],
        ..Layer::default()
    };
    let config = Config::load(None, flags, &around).unwrap();
    assert_eq!(config.run_dir, Path::new("/flag"));
    assert_eq!(config.state_dir, Path::new("/env"));
    assert_eq!(config.drain_timeout, Duration::from_secs(1));
    let prefixes: Vec<_> = config.mounts.iter().map(|mount| mount.prefix.as_str()).collect();
    assert_eq!(prefixes, ["/storage", "/other", "/third"]);
    let storage = &config.mounts[0];
    assert_eq!(storage.url, "s3://flag");
    assert_eq!((storage.max_lag, storage.durability), (Duration::from_secs(8), Durability::Local));
}

#[test]
fn environment_errors_name_the_variable() {
    for (name, text) in [
        ("STORESHIM_RUN_DIR", "run"),
        ("STORESHIM_STATE_DIR", "./x"),
        ("STORESHIM_DRAIN_TIMEOUT", "60"),
        ("STORESHIM_LOG_LEVEL", "a=b=c"),
        ("STORESHIM_LOG_FORMAT", "xml"),
        ("STORESHIM_MOUNT", "/storage"),
    ] {
        let env = |asked: &str| (asked == name).then(|| text.to_owned());
        let error = Layer::from_env(&env).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    let missing = |name: &str| (name == "STORESHIM_CONFIG").then(|| "/nonexistent/s.toml".to_owned());
    let around = Surroundings { uid: 0, env: &missing };
    let error = Config::load(None, Layer::default(), &around).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/s.toml"), "{error}");
}

#[test]
fn credentials_are_not_shown() {
    let config = from_toml("[[mount]]\nprefix = '/s'\nurl = 's3://id:secret@bucket/p?token=x'\n").unwrap();
    assert_eq!(config.mounts[0].public_url(), "s3://bucket/p?token=…");
}

/// The reference lists every key of the file, by the same names, and every variable. The keys come from the
/// parser itself: its message for an unknown key lists those it knows.
#[test]
fn the_reference_lists_every_key() {
    let reference =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md")).unwrap();
    let mut keys = Vec::new();
    for text in ["?? = 1", "[log]\n?? = 1", "[[mount]]\nprefix = '/a'\nurl = 's3://b'\n?? = 1"] {
        let error = error_of(&text.replace("??", "no-such-key"));
        let expected = error.split("expected").nth(1).unwrap();
        keys.extend(expected.split('`').skip(1).step_by(2).map(str::to_owned));
    }
    assert!(keys.len() >= 16, "{keys:?}");
    for key in keys {
        assert!(reference.contains(&format!("`{key}`")), "docs/configuration.md does not list `{key}`");
    }
    for variable in
        ["CONFIG", "RUN_DIR", "STATE_DIR", "DRAIN_TIMEOUT", "LOG_LEVEL", "LOG_FORMAT", "MOUNT", "SHIM"]
    {
        let variable = format!("`STORESHIM_{variable}`");
        assert!(reference.contains(&variable), "docs/configuration.md does not list {variable}");
    }
}
