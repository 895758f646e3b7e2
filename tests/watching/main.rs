//! The tools with which people and programs watch a cluster: `status --watch`, the web page, metrics with alerts and dashboard, bundles;
//! and the completion of their shells.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

#[path = "../support/mod.rs"]
mod support;

mod bundle;
mod chromium;
mod completion;
mod prometheus;
mod schema;
mod scripts;
mod watch;
mod web;

use std::net::SocketAddr;

use support::*;

/// Says that a test was left out, also where the output of tests that pass is not shown.
fn skip(test: &str, why: &str) {
    let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("SKIPPED: {test}: {why}\n"));
}

/// Two nodes of a site, and a resource that is mirrored to another site.
fn two_sites(net: &Subnet, metrics: SocketAddr) -> ConfigFile {
    let config = ConfigBuilder::new(net, 2).heartbeat(0.2, 25).set("metrics", metrics);
    let site = format!(
        "<site><id>1</id><mode>share</mode><nodes><node><id>0</id><hostname>far</hostname><ipaddr>{}</ipaddr>\
         <port>7000</port></node></nodes></site></sites>",
        net.ip(50)
    );
    let runsite = |id: u8, runnode: u8| {
        format!(
            "<runsite><id>{id}</id><ip>{}</ip><port>7100</port><protocol>sync</protocol><disk>/dev/a</disk>\
             <bwr_disk>/dev/b</bwr_disk><runnodes><id>{runnode}</id></runnodes></runsite>",
            net.ip(60 + id)
        )
    };
    let resource = format!(
        "<resource><id>0</id><name>data</name><runsites>{}{}</runsites></resource></resources>",
        runsite(0, 1),
        runsite(1, 0)
    );
    let text = config.render().replace("</sites>", &site).replace("</resources>", &resource);
    let file = config.build();
    std::fs::write(&file.path, text).unwrap();
    file
}
