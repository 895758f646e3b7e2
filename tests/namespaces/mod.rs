//! The harness of the tests of sites: machines as network namespaces, clusters of two sites in them, the kernel
//! module's side and scripted log owners. Used by the test files whose names begin with `site`.
#![allow(dead_code, reason = "every test file compiles this and uses a part")]
#![allow(unused_imports, reason = "the same")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;
mod kernel;
mod net;
mod peer;

pub use cluster::{Cluster, Resource, Seat, config, resource, site_data, site_meta, wait_linked};
pub use kernel::{SiteKernel, Whom};
pub use net::{
    A0, A1, ALL, B0, B1, Machine, NAMES, Network, SERVER, SITE_PORT, floating, floating_v6, node, own_ip,
    site,
};
pub use peer::{SiteCaller, SitePeer, accept};
