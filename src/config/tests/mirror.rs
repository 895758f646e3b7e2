//! The elements of the mirror: their values, their faults, and the messages.
//!
//! Rows as in the parent.

use super::*;
use crate::config::mirror::{
    Fencing, Flush, Mirror, NoPrimary, OnError, OnLoss, OnePrimary, Quorum, TwoPrimaries,
};

fn mirror(xml: &str) -> Mirror {
    config("</protocol>", &format!("</protocol>{xml}")).resources.remove(0).runsites.remove(0).mirror
}

#[track_caller]
fn wrong(xml: &str, message: &str) {
    refused("</protocol>", &format!("</protocol>\n{xml}"), &[message]);
}

#[test]
fn every_element_is_read() {
    assert_eq!(mirror(""), Mirror::default());
    let all = "<nbd>10809</nbd><nbdclients>8</nbdclients><nbdmemory>100M</nbdmemory><flush>local</flush>\
               <onloss>freeze</onloss><quorum>majority</quorum><onerror>stop</onerror><resyncrate>1G</resyncrate><resyncmin>8192</resyncmin>\
               <activeextents>64</activeextents><splitbrain0>discard-site-31</splitbrain0><splitbrain1>call-helper</splitbrain1>\
               <splitbrain2>violently</splitbrain2><splitbrainhelper>/bin/helper</splitbrainhelper>\
               <fencing>/bin/fence</fencing>";
    let read = mirror(all);
    assert_eq!(read.nbd, Some("127.0.0.1:10809".parse().unwrap()));
    assert_eq!((read.nbd_clients, read.nbd_memory), (8, 100 << 20));
    assert_eq!((read.flush, read.on_loss, read.on_error), (Flush::Local, OnLoss::Freeze, OnError::Stop));
    assert_eq!(read.quorum, Quorum::Majority);
    assert_eq!((read.resync_rate, read.resync_min), (Some(1 << 30), 8192));
    assert_eq!(read.active_extents, 64);
    let policies = read.split_brain;
    assert_eq!(policies.zero, NoPrimary::DiscardSite(31.try_into().unwrap()));
    assert_eq!((policies.one, policies.two), (OnePrimary::CallHelper, TwoPrimaries::Violently));
    assert_eq!((&read.helper, read.fencing), (&Some("/bin/helper".into()), Fencing::ResourceOnly));
    assert_eq!(read.fencing_handler(), Some("/bin/fence".as_ref()));
    assert_eq!(mirror("<nbd>[::1]:1</nbd>").nbd, Some("[::1]:1".parse().unwrap()));
}

#[test]
fn what_stands_in_the_resource_holds_for_its_runsites_unless_they_say_otherwise() {
    let outer =
        edited("</name>\n      <runsites>", "</name><flush>local</flush><onloss>freeze</onloss><runsites>");
    let inner = outer.replace("</protocol>", "</protocol><onloss>continue</onloss>");
    let read = load(&inner).unwrap().config.resources.remove(0).runsites.remove(0).mirror;
    assert_eq!((read.flush, read.on_loss), (Flush::Local, OnLoss::Continue));
}

#[test]
fn a_fencing_policy_has_a_handler_and_a_say_in_what_waits() {
    let of = |xml: &str| {
        let read = mirror(xml);
        (read.fencing_handler().map(ToOwned::to_owned), read.freezes())
    };
    assert_eq!(of("<fencing>none</fencing><fencepeer>/bin/fence</fencepeer>"), (None, false));
    assert_eq!(of("<fencing>resource-only</fencing>"), (Some("/etc/hadm/fence-peer".into()), false));
    let both = "<fencepeer>/bin/fence</fencepeer>";
    assert_eq!(
        of(&format!("<fencing>resource-and-stonith</fencing>{both}")),
        (Some("/bin/fence".into()), true)
    );
    assert_eq!(
        of(&format!("<fencing>resource-only</fencing><onloss>freeze</onloss>{both}")),
        (Some("/bin/fence".into()), true)
    );
    // The policy of all sites, the handler of one, and the other way round.
    let outer = edited("</name>\n      <runsites>", "</name><fencing>resource-only</fencing><runsites>");
    let read = |text: &str| load(text).unwrap().config.resources.remove(0).runsites.remove(0).mirror;
    let inner = read(&outer.replace("</protocol>", &format!("</protocol>{both}")));
    assert_eq!(inner.fencing_handler(), Some("/bin/fence".as_ref()));
    let outer = edited("</name>\n      <runsites>", "</name><fencing>/bin/fence</fencing><runsites>");
    let inner = read(&outer.replace("</protocol>", "</protocol><fencing>resource-and-stonith</fencing>"));
    assert_eq!((inner.fencing_handler(), inner.freezes()), (Some("/bin/fence".as_ref()), true));
}

/// The daemon uses none of it: peers of another version must not see another configuration.
#[test]
fn the_digest_does_not_depend_on_it() {
    let other = config("</protocol>", "</protocol><flush>local</flush>");
    assert_eq!(other.digest(), load(VALID).unwrap().config.digest());
}

#[test]
fn each_slip_is_named_with_its_place_and_the_remedy() {
    wrong(
        "<nbd>localhost</nbd>",
        r#"36:6: <nbd> is "localhost": it must be a port of 127.0.0.1, such as 10809, or an address and a port, such as [::1]:10809"#,
    );
    wrong(
        "<nbd>0</nbd>",
        r#"36:6: <nbd> is "0": it must be a port of 127.0.0.1, such as 10809, or an address and a port, such as [::1]:10809"#,
    );
    wrong(
        "<nbdclients>65</nbdclients>",
        r#"36:13: <nbdclients> is "65": it must be a whole number from 1 to 64"#,
    );
    wrong(
        "<nbdmemory>1M</nbdmemory>",
        r#"36:12: <nbdmemory> is "1M": it must be bytes from 33554432 to 68719476736, or with K, M or G, such as 100M"#,
    );
    for value in ["+5M", "M", "5T", "17179869184G", "-1", "1.5G"] {
        let message = format!(
            r#"36:13: <resyncrate> is "{value}": it must be bytes from 4096 to 68719476736, or with K, M or G, such as 100M"#
        );
        wrong(&format!("<resyncrate>{value}</resyncrate>"), &message);
    }
    wrong("<flush>none</flush>", r#"36:8: <flush> is "none": it must be all or local"#);
    wrong("<quorum>2</quorum>", r#"36:9: <quorum> is "2": it must be off or majority"#);
    wrong("<onloss>stop</onloss>", r#"36:9: <onloss> is "stop": it must be continue or freeze"#);
    wrong("<onerror>go</onerror>", r#"36:10: <onerror> is "go": it must be detach or stop"#);
    wrong(
        "<splitbrain0>discard-site-32</splitbrain0>",
        r#"36:14: <splitbrain0> is "discard-site-32": it must be disconnect, discard-younger-primary, discard-older-primary, discard-zero-changes, discard-least-changes or, with the id of a site, discard-site-0"#,
    );
    wrong(
        "<splitbrain2>consensus</splitbrain2>",
        r#"36:14: <splitbrain2> is "consensus": it must be disconnect, call-helper or violently"#,
    );
    wrong(
        "<splitbrain1>call-helper</splitbrain1>",
        r#"36:14: <splitbrain1> is "call-helper": there is no <splitbrainhelper> to call; add one with the whole path of a program"#,
    );
    wrong(
        "<fencing>fence</fencing>",
        r#"36:10: <fencing> is "fence": it must be none, resource-only, resource-and-stonith, or the whole path of a program, such as /etc/hadm/fence"#,
    );
    wrong(
        "<fencepeer>fence</fencepeer>",
        r#"36:12: <fencepeer> is "fence": it must be the whole path of a program, such as /etc/hadm/fence"#,
    );
    wrong(
        "<resyncrate>1M</resyncrate>\n<resyncmin>2M</resyncmin>",
        r#"37:12: <resyncmin> is "2M": <resyncmin> is 2097152 bytes a second and <resyncrate> 1048576: the least must not be more than the most"#,
    );
    wrong("<flush>all</flush><flush>all</flush>", "36:19: <flush> is given twice in <runsite>: keep one");
}

#[test]
fn two_resources_do_not_listen_at_one_address() {
    let first = edited("</protocol>", "</protocol><nbd>10809</nbd>");
    let (before, rest) = first.split_once("    <resource>").unwrap();
    let (resource, after) = rest.split_once("</resources>").unwrap();
    let second = resource.replace("<id>254", "<id>7");
    let text = format!("{before}    <resource>{second}    <resource>{resource}</resources>{after}");
    let found = lines(&load(&text).unwrap_err());
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].ends_with("<nbd> of this resource is 127.0.0.1:10809 at site 31, as another resource's is; give each its own"),
        "{found:?}"
    );
}
