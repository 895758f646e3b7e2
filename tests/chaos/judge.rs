//! The verdicts that need hindsight: D2 (no hole in a session, nothing of an old one in a new one), D3 (delays), D5
//! (in time). Where a fault may be felt nothing is demanded that the contract does not promise; what this
//! process itself was late is allowed for.

use std::time::{Duration, Instant};

use super::ledger::{Change, DATA, Gap, Ledger, META, RECOVERY, Slow, State};
use super::support::bit;

/// `slowtimeout` of the clusters.
pub const SLOW: Duration = Duration::from_millis(500);
/// Longest time of a session when one of its links is dead: the heartbeat's time, two more pings, and a look at the
/// links.
pub const DEAD: Duration = Duration::from_millis(3000);
/// Between the moment at which something can be known and the one at which it must be.
const SLACK: Duration = Duration::from_secs(1);
/// Longest time until a kernel module learns of a change.
const TOLD: Duration = Duration::from_millis(100);
/// Time between two repetitions of the state.
const TICK: Duration = Duration::from_secs(5);
/// Time after the end of a session after which nothing of it can come any more, if everybody reads.
const STALE: Duration = Duration::from_millis(300);
/// The longest delay, by class, where no fault can be felt. Data waits for a peer that is stuck as long as
/// `slowtimeout`, once more for its next session, and for what stands in the sockets before it.
const DELAY: [Duration; 2] = [Duration::from_millis(1500), Duration::from_secs(1)];

/// The allowance for the machine having been late in this time: its processors are shared with all other programs,
/// and where none is idle anything may wait.
fn noise(state: &State, from: Instant, to: Instant) -> Duration {
    let near = state.noise.iter().rev().take_while(|(at, _)| *at >= from);
    let late = near.filter(|(at, late)| *at - *late <= to).map(|(_, late)| *late).max();
    let busy = |at: usize| state.busy.get(at).or(state.busy.last()).map_or(Duration::ZERO, |(_, sum)| *sum);
    let (first, last) = [from, to].map(|when| state.busy.partition_point(|(at, _)| *at <= when)).into();
    (3 * late.unwrap_or_default()).max(busy(last).saturating_sub(busy(first.saturating_sub(1))))
}

/// Faults that can be felt in a time: a fault is while it lasts, and `after` it.
fn faults(
    state: &State,
    from: Instant,
    to: Instant,
    after: Duration,
) -> impl Iterator<Item = &(super::plan::Step, Instant, Option<Instant>)> {
    // Entered by their beginnings; none lasts longer than this.
    let old = Duration::from_secs(20);
    let near = state.faults.iter().rev().take_while(move |(_, begin, _)| *begin + old + after > from);
    near.filter(move |(_, begin, end)| *begin <= to && end.is_none_or(|end| end + after >= from))
}

/// Returns true if a fault can be felt between two nodes in a time.
pub fn concerned(state: &State, a: usize, b: usize, from: Instant, to: Instant) -> bool {
    faults(state, from, to, RECOVERY).any(|(step, ..)| step.fault.concerns(a, b))
}

fn impaired(state: &State, node: usize, from: Instant, to: Instant) -> bool {
    faults(state, from, to, Duration::ZERO).any(|(step, ..)| step.fault.impairs() == Some(node))
}

/// The time in which a node can hear of an event in a time: longer where it did not read or run. `None`
/// while that is not over.
fn widened(state: &State, node: usize, mut from: Instant, mut to: Instant) -> Option<(Instant, Instant)> {
    loop {
        let slack = SLACK + noise(state, from, to + SLACK);
        let (low, high) = (from - slack, to + slack);
        let (mut next_from, mut next_to) = (from, to);
        for (step, begin, end) in faults(state, low, high, Duration::ZERO) {
            if step.fault.impairs() == Some(node) {
                next_from = next_from.min(*begin);
                next_to = next_to.max((*end)?);
            }
        }
        if (next_from, next_to) == (from, to) {
            return (Instant::now() > high).then_some((low, high));
        }
        (from, to) = (next_from, next_to);
    }
}

/// D3, when a packet comes.
pub fn delay(
    state: &mut State,
    (src, dst, class, number): (usize, usize, usize, u64),
    sent: Instant,
    now: Instant,
) {
    let felt = |step: &super::plan::Step| match class {
        META => step.fault.concerns_meta(src, dst),
        _ => step.fault.concerns(src, dst),
    };
    if faults(state, sent, now, RECOVERY).any(|(step, ..)| felt(step)) {
        return;
    }
    let delay = now - sent;
    state.counts.timed += 1;
    state.counts.worst_delay[class] = state.counts.worst_delay[class].max(delay);
    if delay > DELAY[class] {
        let class_name = super::ledger::CLASSES[class];
        let what = format!("{class_name} packet {number} from node {src} to node {dst}");
        state.slow.push(Slow { what, sent, came: now, limit: DELAY[class] });
    }
}

/// D3, once it is known how late the machine was.
fn delays(ledger: &Ledger, state: &mut State) {
    let (due, later) =
        std::mem::take(&mut state.slow).into_iter().partition(|slow| slow.came.elapsed() > SLACK);
    state.slow = later;
    for Slow { what, sent, came, limit } in due {
        let (took, noise) = (came - sent, noise(state, sent, came));
        if took > limit + noise {
            let text = format!("D3: {what} took {took:?}, though no fault concerns them (noise {noise:?})");
            state.violate(ledger, text);
        }
    }
}

/// All that can be judged by now.
pub fn hindsight(ledger: &Ledger) {
    let state = &mut *ledger.lock();
    let gaps = std::mem::take(&mut state.gaps);
    for gap in gaps {
        match judge_gap(state, &gap) {
            None => state.gaps.push_back(gap),
            Some(Ok(())) => {}
            Some(Err(text)) => state.violate(ledger, text),
        }
    }
    delays(ledger, state);
    old_sessions(ledger, state);
    changes(ledger, state);
    ticks(ledger, state);
    stuck(ledger, state);
}

/// D2: packets are missing only between sessions, and both modules heard that a session ended.
fn judge_gap(state: &State, gap: &Gap) -> Option<Result<(), String>> {
    let Gap { src, dst, class, between: (before, after), .. } = *gap;
    let lost = || {
        format!(
            "D2: node {dst} misses {} packets {} to {} of node {src}, came {:?} apart",
            super::ledger::CLASSES[class],
            gap.lost.0,
            gap.lost.1,
            after - before
        )
    };
    let (from, to) = widened(state, dst, before, after)?;
    let view = &state.views[dst];
    let within = |at: &Instant| from <= *at && *at <= to;
    // Meta packets may be dropped while no kernel module is there to read them, and no session ends for that.
    let absent = view.attached.iter().chain(&view.detached).any(within);
    if class == META && (absent || impaired(state, dst, from, to)) {
        return Some(Ok(()));
    }
    let bounds = view.epochs[src].iter().flat_map(|epoch| [Some(epoch.from), epoch.to]).flatten();
    if !bounds.chain(view.detached.iter().copied()).any(|at| within(&at)) {
        return Some(Err(format!("{}, and was not told that a session ended", lost())));
    }
    let (_, to) = widened(state, src, before, after)?;
    let told = |stamp: &u32| state.views[src].epochs[dst][*stamp as usize - 1].to.is_some_and(|at| at <= to);
    Some(match gap.stamps.iter().find(|stamp| !told(stamp)) {
        None => Ok(()),
        Some(stamp) => Err(format!("{}, and node {src} was not told that its session {stamp} ended", lost())),
    })
}

/// D2: what a daemon had read before a session began does not come in that session. Judged where the kernel module
/// had heard long before that the session before was over.
fn old_sessions(ledger: &Ledger, state: &mut State) {
    let now = Instant::now();
    while state.arrivals.front().is_some_and(|arrival| arrival.at + 2 * SLACK < now) {
        let Some(arrival) = state.arrivals.pop_front() else { return };
        let (src, dst, at) = (arrival.src, arrival.dst, arrival.at);
        let mut ends = state.views[dst].epochs[src].iter().filter_map(|epoch| epoch.to);
        let Some(ended) = ends.rfind(|end| *end <= at) else { continue };
        let Some(epoch) = state.views[src].epochs[dst].iter().find(|e| e.from + SLACK / 2 > ended) else {
            continue;
        };
        let (begun, noise) = (epoch.from, noise(state, ended - SLACK, at + SLACK));
        let unclear = |node| impaired(state, node, ended - SLACK, at.max(begun) + SLACK);
        if at < ended + STALE + noise || begun > at + TOLD + noise || unclear(src) || unclear(dst) {
            continue;
        }
        let before = begun - SLACK / 5 - noise;
        let read = state.read[src].iter().rev().find(|(at, _)| *at <= before);
        let read = read.map(|(at, high)| (*at - ledger.born, *high));
        state.counts.old_session += 1;
        if read.is_some_and(|(_, high)| arrival.number <= high) {
            let text = format!(
                "D2: packet {} of node {src} came to node {dst} at {:?}, after the end of its session was told at {:?}: \
                 node {src} was told of the next at {:?}, and had read up to packet {read:?}",
                arrival.number,
                at - ledger.born,
                ended - ledger.born,
                begun - ledger.born,
            );
            state.violate(ledger, text);
        }
    }
}

/// D5: the kernel module learns of every change in time. D3: no session ends for what happens elsewhere.
fn changes(ledger: &Ledger, state: &mut State) {
    let (due, later) =
        std::mem::take(&mut state.changes).into_iter().partition(|change| change.at.elapsed() > 2 * SLACK);
    state.changes = later;
    for Change { node, peer, up, at } in due {
        // At first kernel modules attach one after the other, which ends sessions.
        if !up && at > ledger.born + RECOVERY && !concerned(state, node, peer, at, at) {
            state.counts.unexplained += 1;
            if noise(state, at - 2 * SLACK, at) < SLACK / 2 {
                let text = format!(
                    "D3: the session of nodes {node} and {peer} ended, though no fault concerns them"
                );
                state.violate(ledger, text);
            }
        }
        let view = &state.views[node];
        let (from, to) = (at - SLACK / 2, at + SLACK);
        let there = view.attached.is_some_and(|since| since < from);
        let left = view.detached.iter().any(|end| (from..to).contains(end));
        if !there || left || impaired(state, node, at - SLACK, to) {
            continue;
        }
        let right = |(_, mask): &&(Instant, u32)| (mask & bit(peer as u8) != 0) == up;
        let told = view.told.iter().rev().take_while(|(told, _)| *told >= from);
        let Some((told, _)) = told.filter(right).last() else {
            state.violate(ledger, format!("D5: node {node} was not told that node {peer} is there: {up}"));
            continue;
        };
        let took = told.saturating_duration_since(at);
        state.counts.changes += 1;
        state.counts.worst_told = state.counts.worst_told.max(took);
        let noise = noise(state, at, *told);
        if took > TOLD + noise {
            let text = format!(
                "D5: node {node} was told {took:?} late that node {peer} is there: {up} (noise {noise:?})"
            );
            state.violate(ledger, text);
        }
    }
}

/// D5: and hears it again on each tick.
fn ticks(ledger: &Ledger, state: &mut State) {
    let now = Instant::now();
    for node in 0..ledger.nodes {
        let view = &state.views[node];
        let Some(since) = view.attached else { continue };
        let silent = now - view.told.last().map_or(since, |(at, _)| at.max(&since).to_owned());
        let from = now - TICK - 2 * SLACK;
        if silent > TICK + SLACK + noise(state, from, now) && !impaired(state, node, from, now) {
            state.violate(ledger, format!("D5: node {node} was told nothing for {silent:?}"));
        }
    }
}

/// D2: a session ends when one of its links is dead, though the other one lives. `epochs` had been sent to its nodes
/// when the link died at `since`.
pub fn dead_link(ledger: &Ledger, (a, b): (usize, usize), epochs: [usize; 2], since: Instant) {
    let state = &mut *ledger.lock();
    let now = Instant::now();
    // Taken back in a moment: only its own fault may concern them.
    let others =
        faults(state, since - RECOVERY, now, RECOVERY).filter(|(step, ..)| step.fault.concerns(a, b));
    let lasted = open_epochs(state, a, b) == Some(epochs);
    if others.count() > 1 || !lasted || now - since < DEAD + SLACK + noise(state, since, now) {
        return;
    }
    let text =
        format!("D2: the session of nodes {a} and {b} lasts {:?} after one of its links died", now - since);
    state.violate(ledger, text);
}

/// The number of the session that each of two nodes has heard of, while both are.
pub fn open_epochs(state: &State, a: usize, b: usize) -> Option<[usize; 2]> {
    let open = |node: usize, peer: usize| {
        let epochs = &state.views[node].epochs[peer];
        epochs.last().is_some_and(|epoch| epoch.to.is_none()).then_some(epochs.len())
    };
    Some([open(a, b)?, open(b, a)?])
}

/// D2, D3: what was sent in a session that lasts comes, though nothing comes after it.
fn stuck(ledger: &Ledger, state: &mut State) {
    let now = Instant::now();
    let patience = DELAY[DATA] + SLACK;
    let patience = patience + noise(state, now.checked_sub(2 * patience).unwrap_or(ledger.born), now);
    for (src, dst) in (0..ledger.nodes).flat_map(|src| (0..ledger.nodes).map(move |dst| (src, dst))) {
        let epoch = state.views[src].epochs[dst].last().filter(|epoch| epoch.to.is_none());
        let Some(since) = epoch.map(|epoch| epoch.from) else { continue };
        let old = state.sent[src][DATA].partition_point(|sent| sent.at + patience < now);
        let sent = &state.sent[src][DATA][..old];
        let Some(last) = sent.iter().rposition(|sent| sent.mask & bit(dst as u8) != 0) else { continue };
        let at = sent[last].at;
        let came = Ledger::last(state, src, dst, DATA).is_some_and(|came| came >= last as u64);
        if came || sent[last].stamp[dst] == 0 || at <= since || concerned(state, src, dst, at, now) {
            continue;
        }
        let text = format!(
            "D2: data packet {last} from node {src} to node {dst} has not come for {:?}, though its session lasts",
            now - at
        );
        state.violate(ledger, text);
    }
}

/// The gaps of a cluster at peace: a node that has not heard of everybody, or a packet of an unbroken
/// session did not come.
pub fn missing(ledger: &Ledger, flushed: bool) -> Option<String> {
    let state = ledger.lock();
    for node in 0..ledger.nodes {
        let view = &state.views[node];
        let all = ledger.all() & !bit(node as u8);
        if view.attached.is_none() || view.told.last().is_none_or(|(_, mask)| *mask != all) {
            let (attached, told) = (view.attached.is_some(), view.told.last().map_or(0, |(_, mask)| *mask));
            return Some(format!(
                "kernel module {node}: attached {attached}, told {told:#07b} and not {all:#07b}"
            ));
        }
    }
    let pairs = (0..ledger.nodes).flat_map(|src| (0..ledger.nodes).map(move |dst| (src, dst)));
    for (src, dst) in pairs.filter(|(src, dst)| flushed && src != dst) {
        for class in [DATA, META] {
            let epoch = state.views[src].epochs[dst].len() as u32;
            let sent = state.sent[src][class]
                .iter()
                .rposition(|sent| sent.mask & bit(dst as u8) != 0 && sent.stamp[dst] == epoch);
            let last = Ledger::last(&state, src, dst, class);
            if sent.is_none_or(|sent| last.is_none_or(|last| last < sent as u64)) {
                return Some(format!(
                    "{} from node {src} to node {dst}: sent {sent:?} in the present session, came {last:?}",
                    super::ledger::CLASSES[class]
                ));
            }
        }
    }
    None
}
