//! A Worker as the runtime is told of it.

use std::path::Path;

/// A class of Durable Objects.
#[derive(Clone, Copy, Debug)]
pub struct Class<'a> {
    /// Its name in the code.
    pub name: &'a str,
    /// Its name in `env`.
    pub binding: &'a str,
    /// Each object has a container.
    pub container: bool,
}

/// A Worker.
#[derive(Clone, Copy, Debug)]
pub struct Worker<'a> {
    /// Its main module.
    pub entry: &'a Path,
    /// Its Durable Objects.
    pub classes: &'a [Class<'a>],
    /// The socket of the engine that starts containers.
    pub engine: Option<&'a Path>,
}

impl Worker<'_> {
    /// The runtime's configuration.
    pub(crate) fn configuration(&self, token: &str) -> String {
        let mut namespaces = String::new();
        let mut bindings = String::new();
        for Class { name, binding, container } in self.classes {
            let container = if *container { ", container = (imageName = \"agent:dev\")" } else { "" };
            namespaces.push_str(&format!(
                "    (className = \"{name}\", uniqueKey = \"{name}\", enableSql = true{container}),\n"
            ));
            bindings.push_str(&format!("    (name = \"{binding}\", durableObjectNamespace = \"{name}\"),\n"));
        }
        let engine = self.engine.map_or_else(String::new, |socket| {
            format!(
                "containerEngine = (localDocker = (socketPath = \"unix:{}\", containerEgressInterceptorImage = \
                 \"egress:dev\")),",
                socket.display()
            )
        });
        format!(
            r#"using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [
    (name = "main", worker = .worker),
    (name = "network", network = (allow = ["public", "private"])),
    (name = "disk", disk = (writable = true, path = "set on the command line")),
  ],
  sockets = [(name = "http", address = "127.0.0.1:0", http = (), service = "main")],
);
const worker :Workerd.Worker = (
  modules = [(name = "worker", esModule = embed "worker.js")],
  compatibilityDate = "2026-04-01",
  globalOutbound = "network",
  durableObjectStorage = (localDisk = "disk"),
  {engine}
  durableObjectNamespaces = [
{namespaces}  ],
  bindings = [
{bindings}    (name = "STORESHIM_TOKEN", text = "{token}"),
  ],
);
"#
        )
    }
}
