//! Faults of disks, metadata and other sites: each is refused by name, with the remedy, or survived.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use hadmd::wire::PacketType;

use super::namespaces::{B0, SERVER, SiteKernel, Whom};
use super::sites::{CHUNK, FLUSH, PATIENCE, SIZE, Sites, assert_content, output, write};
use super::support::Packet;

/// Stops a site's mirror, has its metadata made anew, and starts it.
fn init_again(pair: &mut Sites, site: usize, options: &[&str]) {
    let mut program = pair.mirrors[site].take().unwrap();
    program.term();
    program.wait_exit(PATIENCE);
    pair.init(site, &[&["--force"], options].concat());
    pair.start_mirror(site);
}

/// The size of a site's disk, before its metadata are made.
fn resize(pair: &Sites, site: usize, size: u64) {
    fs::File::options().write(true).open(pair.disk(site)).unwrap().set_len(size).unwrap();
}

#[test]
fn of_disks_that_differ_in_size_the_smaller_counts() {
    // Also where the larger one is filled and made primary before the two are in sync; the last chunk is cut.
    for clean in [true, false] {
        let Some(mut pair) = Sites::prepare(2, "") else { return };
        let small = SIZE - 3 * 4096;
        resize(&pair, 0, 2 * SIZE);
        resize(&pair, 1, small);
        if !clean {
            let bytes: Vec<u8> =
                std::iter::repeat_with(|| fastrand::u8(..)).take(2 * SIZE as usize).collect();
            fs::write(pair.disk(0), bytes).unwrap();
        }
        pair.all().for_each(|site| pair.init(site, if clean { &["--clean"] } else { &[] }));
        pair.all().for_each(|site| pair.start_site(site));
        if clean {
            pair.wait_in_sync();
        } else {
            pair.wait(0, "just created: make the one whose content counts primary");
            pair.hadmctl(0, &["primary", "--force", "data"]).unwrap();
            pair.wait(1, "the disks differ in size, and 32.0 MiB are mirrored");
            pair.wait_in_sync();
            pair.hadmctl(0, &["secondary", "data"]).unwrap();
        }
        // The larger one is primary, then the smaller one.
        for site in [0, 1] {
            pair.hadmctl(site, &["primary", "data"]).unwrap();
            let mut client = pair.client(site);
            client.write(1, small - 1, b"x");
            client.simple_reply(1, 0);
            client.write(2, small, b"x");
            client.simple_reply(2, 28);
            write(&mut client, 7, site as u8 + 1);
            assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
            // Everything, at a crash of the other site.
            pair.kill_site(1 - site);
            client.write(3, small - 4096, &[site as u8 + 5; 4096]);
            client.simple_reply(3, 0);
            pair.start_site(1 - site);
            pair.wait_in_sync();
            drop(client);
            pair.hadmctl(site, &["secondary", "data"]).unwrap();
        }
        let [a, b] = [0, 1].map(|site| fs::read(pair.disk(site)).unwrap());
        assert!(a[..small as usize] == b[..]);
        assert_eq!(a.len() as u64, 2 * SIZE);
        // One that is smaller than what was agreed on is refused.
        let mut program = pair.mirrors[1].take().unwrap();
        program.term();
        program.wait_exit(PATIENCE);
        resize(&pair, 1, SIZE / 2);
        pair.init(1, &["--force"]);
        pair.start_mirror(1);
        for site in [0, 1] {
            pair.wait(
                site,
                "the disk of site 1 has 16777216 bytes, 33542144 were agreed on: give it a disk of that size",
            );
        }
        pair.stop();
    }
}

#[test]
fn chunks_that_differ_are_refused() {
    let Some((mut pair, mut client)) = Sites::serving("") else { return };
    write(&mut client, 5, 5);
    init_again(&mut pair, 1, &["--chunk", "128K"]);
    pair.wait(0, "has chunks of 65536 bytes and that of site 1 of 131072: make the metadata anew");
    pair.wait(1, "has chunks of 131072 bytes and that of site 0 of 65536: make the metadata anew");
    let plan = pair.hadmctl(0, &["plan", "data"]).unwrap();
    assert!(plan.contains("--chunk 65536` at site 1") && !plan.contains("to compare"), "{plan}");
    // No client notices.
    write(&mut client, 6, 6);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    assert_content(&mut client, 6, 6);
    pair.stop();
}

#[test]
fn metadata_and_disks_of_others_or_cut_ones_are_refused() {
    let Some(pair) = Sites::prepare(2, "") else { return };
    pair.all().for_each(|site| pair.init(site, &["--clean"]));
    let refused = |part: &str| {
        let done = pair.run(0).output().unwrap();
        let text = output(&done);
        assert!(!done.status.success() && text.contains(part), "no {part:?} in {text}");
    };
    let meta = pair.path("meta", 0);
    let whole = fs::read(&meta).unwrap();
    // Cut in the bitmaps, and in the label.
    for len in [whole.len() - 4096, 100] {
        fs::write(&meta, &whole[..len]).unwrap();
        refused(meta.to_str().unwrap());
    }
    // Of another resource.
    fs::write(&meta, &whole).unwrap();
    let xml = pair.dir.path.join("hadm.xml");
    let text = fs::read_to_string(&xml).unwrap();
    fs::write(&xml, text.replace("<resource><id>0</id>", "<resource><id>5</id>")).unwrap();
    refused("belongs to resource 0");
    fs::write(&xml, &text).unwrap();
    // The data disk is gone, or is a folder.
    fs::remove_file(pair.disk(0)).unwrap();
    refused("make it, for instance with `truncate");
    fs::create_dir(pair.disk(0)).unwrap();
    refused("is neither a file nor a block device");
}

/// A secondary that was restored from an older copy is found out, and made equal again.
#[test]
fn a_site_restored_from_an_older_copy_is_made_equal() {
    let Some((mut pair, mut client)) = Sites::serving("") else { return };
    write(&mut client, 1, 1);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    let copies = ["disk", "meta"].map(|what| (pair.path(what, 1), pair.path(&format!("old-{what}"), 1)));
    pair.kill_site(1);
    for (from, to) in &copies {
        fs::copy(from, to).unwrap();
    }
    pair.start_site(1);
    pair.wait_in_sync();
    for chunk in [1, 100, 300, 511] {
        write(&mut client, chunk, 77);
    }
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    pair.kill_site(1);
    for (to, from) in &copies {
        fs::copy(from, to).unwrap();
    }
    pair.start_site(1);
    pair.wait_in_sync();
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    pair.assert_equal();
    pair.stop();
}

/// The kernel module at the other site, and a program of a later version: each is named, and nothing is replicated.
#[test]
fn other_kinds_of_sites_are_refused_by_name() {
    let Some(mut pair) = Sites::prepare(2, "") else { return };
    pair.all().for_each(|site| pair.init(site, &["--clean"]));
    pair.start_daemon(1);
    let kernel = pair.net.machines[B0].inside(|| SiteKernel::attach("b0", SERVER, 1, 0));
    pair.start_site(0);
    kernel.wait_state(Whom::Sites(0), 1);
    let hello = loop {
        let packet = kernel.meta.recv();
        if packet.kind() == PacketType::SC_HS.0 {
            break packet;
        }
    };
    let send = |payload: Vec<u8>| {
        let mut packet =
            Packet::new(PacketType::SC_HS.0).with_from(1).with_to(1).with_dev(0).with_node_type(1);
        packet = packet.with_len(u32::try_from(payload.len()).unwrap());
        packet.payload = payload;
        kernel.meta.send(&packet);
    };
    send(vec![0; 440]);
    pair.wait(0, "it runs hadm_kmod: cannot mirror with it");
    let refusal = loop {
        let packet = kernel.meta.recv();
        if packet.kind() == PacketType::SC_HS_ACK.0 {
            break packet;
        }
    };
    assert_eq!(refusal.bytes()[56..58], (-65_i16).to_le_bytes());
    // Its own record, with a feature that nobody has.
    let mut record = hello.payload.clone();
    record[452..456].copy_from_slice(&(1_u32 << 30).to_le_bytes());
    send(record);
    pair.wait(0, "it needs features that this program does not have: bit 30");
    drop(kernel);
    pair.stop();
}

/// A disk that fails under a primary: another site's is used, or the role ends, as configured.
#[test]
fn a_disk_that_fails_is_replaced_by_the_other_site_or_ends_the_role() {
    for (more, detaches) in [("", true), ("<onerror>stop</onerror>", false)] {
        let Some((mut pair, mut client)) = Sites::serving(more) else { return };
        write(&mut client, 4, 4);
        assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
        // From now on it cannot be read.
        let disk = fs::File::options().write(true).open(pair.disk(0)).unwrap();
        disk.set_len(0).unwrap();
        if detaches {
            assert_content(&mut client, 4, 4);
            write(&mut client, 5, 5);
            assert_content(&mut client, 5, 5);
            pair.wait(0, "disk failed");
            let wrong = pair.hadmctl(0, &["doctor", "data"]).unwrap_err();
            assert!(wrong.contains("WRONG data: disk"), "{wrong}");
        } else {
            client.request(0, 0, 1, 4 * CHUNK as u64, 4096);
            // An error, or the end.
            let end = Instant::now() + PATIENCE;
            while pair.status(0)["role"] != "secondary" {
                assert!(Instant::now() < end, "{}", pair.status(0));
                std::thread::park_timeout(Duration::from_millis(50));
            }
            drop(client);
            pair.wait(1, "no primary");
            pair.hadmctl(1, &["primary", "data", "--force"]).unwrap();
            let mut client = pair.client(1);
            assert_content(&mut client, 4, 4);
        }
        let there = fs::File::open(pair.disk(1)).unwrap();
        let mut found = [0];
        there.read_exact_at(&mut found, 4 * CHUNK as u64).unwrap();
        assert_eq!(found, [4]);
        for site in [1, 0] {
            pair.kill_site(site);
        }
    }
}
