//! What [`Hydrate::Auto`] comes to for a mount. It must not know how anything is brought.

use crate::volume::{Hydrate, VolumeOptions};

/// When what is not here is brought, for a volume whose files have `bytes` and a cache of `cache_size`.
pub fn decide(options: &VolumeOptions, bytes: u64, cache_size: u64) -> Hydrate {
    match options.hydrate {
        Hydrate::Auto if !options.identity => Hydrate::OnRead,
        Hydrate::Auto if bytes <= cache_size => Hydrate::Eager,
        Hydrate::Auto => {
            tracing::warn!(
                bytes,
                cache_size,
                prefix = %options.prefix.display(),
                "the volume does not fit into the cache, so its files come when they are read: run programs under the shim only, \
                 or raise cache_size (another program may find a name missing that is not here yet)"
            );
            Hydrate::OnRead
        }
        chosen => chosen,
    }
}

/// What is to be known of a mount that was asked to have everything here, and cannot keep it.
pub fn shortfall(options: &VolumeOptions, bytes: u64, cache_size: u64) -> Option<String> {
    (options.hydrate == Hydrate::Eager && bytes > cache_size).then(|| {
        format!(
            "hydrate=eager, but the volume's {bytes} bytes do not fit into the cache of {cache_size}: what is beyond is evicted \
             again, and programs without the shim may meet absent files; raise cache_size"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::tests::options;

    #[test]
    fn who_does_not_ask_finds_everything_where_it_fits() {
        let decided =
            |hydrate, identity, bytes| decide(&VolumeOptions { hydrate, identity, ..options() }, bytes, 100);
        assert_eq!(decided(Hydrate::Auto, false, 1), Hydrate::OnRead);
        assert_eq!(decided(Hydrate::Auto, true, 100), Hydrate::Eager);
        assert_eq!(decided(Hydrate::Auto, true, 101), Hydrate::OnRead);
        assert_eq!(decided(Hydrate::OnRead, true, 1), Hydrate::OnRead);
        assert_eq!(decided(Hydrate::Eager, false, 101), Hydrate::Eager);
    }

    #[test]
    fn who_is_promised_everything_is_told_where_it_does_not_fit() {
        let told = |hydrate, bytes| shortfall(&VolumeOptions { hydrate, ..options() }, bytes, 100);
        assert!(told(Hydrate::Eager, 101).unwrap().contains("raise cache_size"));
        assert_eq!(told(Hydrate::Eager, 100), None);
        assert_eq!(told(Hydrate::OnRead, 101), None);
    }
}
