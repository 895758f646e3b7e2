//! Mistakes that the simulator lets the core make, to see that it finds each of them.
//!
//! Must never have an effect outside tests. Called where the core would make the mistake.

/// A mistake that the simulator lets the core make, to see that it is found.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    AcceptGaps,
    WrittenIsStable,
    EvictEarly,
    GenerationLate,
    PromoteHalfSynced,
    ResyncUnlocked,
    FlushLies,
    Unordered,
    BelieveStale,
    TakeTwin,
    Unlogged,
    NeverVoid,
    RunAhead,
    GrowUnmarked,
    SizeEarly,
    NamedEarly,
    CatchUpUnlogged,
    CatchUpUnmarked,
    IgnoreWitness,
    BelieveBits,
    CountAnew,
}

/// `mutated!(self, Mutation)`: true if the simulator wants that mistake; never outside tests.
macro_rules! mutated {
    ($core:expr, $mutation:ident) => {{
        #[cfg(test)]
        let wanted = $core.mutation == Some(crate::nbd::core::Mutation::$mutation);
        #[cfg(not(test))]
        let wanted = false;
        wanted
    }};
}
pub(super) use mutated;
