//! Explores every world that can be reached, breadth first, and checks the promises in each.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use super::invariants;
use super::setup::Setup;
use super::state::{Message, World};
use super::step::Step;
use super::trace;

/// From here on nothing happens by itself, though something is left to do.
pub(crate) const NOTHING_IS_STUCK: &str = "nothing_is_stuck";
/// A run without mishaps comes to an end.
pub(crate) const EVERY_CALM_RUN_ENDS: &str = "every_calm_run_ends";

/// How much was explored.
#[derive(Debug)]
pub(crate) struct Explored {
    pub(crate) worlds: usize,
    pub(crate) transitions: usize,
    /// How many steps it is to the world that is farthest from the start.
    pub(crate) depth: usize,
    /// What became of the messages, whichever of them, in the worlds in which nothing is left to do.
    pub(crate) ends: BTreeSet<Vec<Message>>,
}

/// A promise that does not hold, and the shortest way to see it.
pub(crate) struct Violation {
    pub(crate) promise: &'static str,
    pub(crate) steps: Vec<Step>,
    story: String,
}

impl fmt::Debug for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is broken after {} steps:\n{}", self.promise, self.steps.len(), self.story)
    }
}

/// Explores `setup` exhaustively.
///
/// Safety is checked in every world. Liveness: a world in which no step but mishaps is left must have everything done,
/// and the steps that are no mishaps must make no circle. So from every world, whatever happened before, every run in
/// which nothing more goes wrong ends, and ends well.
pub(crate) fn explore(setup: &Setup) -> Result<Explored, Violation> {
    let mut search = Search::new(setup);
    let mut ends = BTreeSet::new();
    while let Some((number, world)) = search.frontier.pop_front() {
        if let Some(promise) = invariants::broken(&world, setup) {
            return Err(search.violation(promise, number));
        }
        let is_at_rest = !search.expand(number, &world);
        if !is_at_rest {
            continue;
        }
        if !invariants::all_is_done(&world, setup) {
            return Err(search.violation(NOTHING_IS_STUCK, number));
        }
        let mut messages = world.messages;
        messages.sort_unstable();
        ends.insert(messages);
    }
    if let Some(number) = search.calm.on_a_circle() {
        return Err(search.violation(EVERY_CALM_RUN_ENDS, number));
    }
    Ok(Explored { worlds: search.parents.len(), transitions: search.transitions, depth: search.depth(), ends })
}

struct Search<'a> {
    setup: &'a Setup,
    /// By fingerprint: with 128 bits, two worlds of ten million share one with a chance below 10⁻²⁴.
    numbers: HashMap<u128, u32, BuildHasherDefault<Folded>>,
    fingerprints: Vec<u128>,
    parents: Vec<u32>,
    frontier: VecDeque<(u32, World)>,
    calm: Graph,
    transitions: usize,
}

impl<'a> Search<'a> {
    fn new(setup: &'a Setup) -> Self {
        let mut search = Self {
            setup,
            numbers: HashMap::default(),
            fingerprints: Vec::new(),
            parents: Vec::new(),
            frontier: VecDeque::new(),
            calm: Graph::default(),
            transitions: 0,
        };
        search.number(World::start(setup).tidy(setup), 0);
        search
    }

    /// Takes every step from a world. Answers whether any was no mishap.
    fn expand(&mut self, number: u32, world: &World) -> bool {
        let mut is_moving = false;
        for step in world.explored(self.setup) {
            let next = self.number(world.after(step, self.setup).tidy(self.setup), number);
            self.transitions += 1;
            if step.mishap().is_none() {
                is_moving = true;
                self.calm.add(next);
            }
        }
        self.calm.close();
        is_moving
    }

    /// The number of a world; a new one is to be expanded.
    fn number(&mut self, world: World, parent: u32) -> u32 {
        let fingerprint = fingerprint(&world);
        let next = u32::try_from(self.parents.len()).expect("fewer worlds than 2³²");
        match self.numbers.entry(fingerprint) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                new.insert(next);
                self.fingerprints.push(fingerprint);
                self.parents.push(parent);
                self.frontier.push_back((next, world));
                next
            }
        }
    }

    /// The numbers from the start to a world.
    fn path(&self, mut number: u32) -> Vec<u32> {
        let mut path = vec![number];
        while number != 0 {
            number = self.parents[number as usize];
            path.push(number);
        }
        path.reverse();
        path
    }

    fn depth(&self) -> usize {
        self.path(u32::try_from(self.parents.len() - 1).expect("fewer worlds than 2³²")).len() - 1
    }

    /// Walks the way again; where possible without tidying, so that every node keeps its name from step to step.
    fn violation(&self, promise: &'static str, number: u32) -> Violation {
        let mut world = World::start(self.setup);
        let mut steps = Vec::new();
        for next in self.path(number).into_iter().skip(1) {
            let leads_there = |step: &Step| {
                fingerprint(&world.after(*step, self.setup).tidy(self.setup)) == self.fingerprints[next as usize]
            };
            let step = world.explored(self.setup).into_iter().find(leads_there);
            let step = step.expect("the way was walked before");
            world = world.after(step, self.setup);
            if self.setup.reduces {
                world = world.tidy(self.setup);
            }
            steps.push(step);
        }
        Violation { promise, story: trace::story(&steps, &world), steps }
    }
}

/// The steps that are no mishaps, as a graph. Worlds are expanded in the order of their numbers.
#[derive(Default)]
struct Graph {
    targets: Vec<u32>,
    ends: Vec<usize>,
}

impl Graph {
    fn add(&mut self, target: u32) {
        self.targets.push(target);
    }

    fn close(&mut self) {
        self.ends.push(self.targets.len());
    }

    fn successors(&self, number: usize) -> &[u32] {
        let start = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.targets[start..self.ends[number]]
    }

    /// Takes away, again and again, what nothing leads to; what is left lies on circles or behind them.
    fn on_a_circle(&self) -> Option<u32> {
        let mut incoming = vec![0_u32; self.ends.len()];
        for &target in &self.targets {
            incoming[target as usize] += 1;
        }
        let mut free: Vec<usize> = (0..self.ends.len()).filter(|&number| incoming[number] == 0).collect();
        while let Some(number) = free.pop() {
            for &target in self.successors(number) {
                incoming[target as usize] -= 1;
                if incoming[target as usize] == 0 {
                    free.push(target as usize);
                }
            }
        }
        incoming.iter().position(|&left| left > 0).map(|number| u32::try_from(number).expect("fewer worlds than 2³²"))
    }
}

fn fingerprint(world: &World) -> u128 {
    let mut hasher = Folded::default();
    world.hash(&mut hasher);
    hasher.fingerprint()
}

/// A fast hash of 128 bits: two lanes, each folded by a multiplication of 64 × 64 bits. Nobody chooses the input.
#[derive(Clone, Copy)]
struct Folded {
    lanes: [u64; 2],
}

impl Default for Folded {
    fn default() -> Self {
        Self { lanes: [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344] }
    }
}

impl Folded {
    fn fold(&mut self, word: u64) {
        const FACTORS: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03];
        for (lane, factor) in self.lanes.iter_mut().zip(FACTORS) {
            let product = u128::from(*lane ^ word) * u128::from(factor);
            *lane = (product as u64 ^ (product >> 64) as u64).wrapping_add(factor);
        }
    }

    fn fingerprint(mut self) -> u128 {
        self.fold(1);
        self.fold(2);
        u128::from(self.lanes[0]) << 64 | u128::from(self.lanes[1])
    }
}

impl Hasher for Folded {
    fn finish(&self) -> u64 {
        self.lanes[0]
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.fold(u64::from(byte));
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.fold(u64::from(number));
    }

    fn write_usize(&mut self, number: usize) {
        self.fold(number as u64);
    }

    fn write_isize(&mut self, number: isize) {
        self.fold(number as u64);
    }

    fn write_u128(&mut self, number: u128) {
        self.fold(number as u64);
        self.fold((number >> 64) as u64);
    }
}
