// Arm's memory ordering between vCPUs on threads of their own (Arm ARM B2.3), by litmus tests: store buffering, load
// buffering, message passing, causality and IRIW with each kind of barrier, ordered accesses, exclusives and LSE; and
// that accesses are not torn and read-modify-writes not lost.
//
// Threads do not step together: each writes 1, 2, 3 … into its variable and notes what it reads of the others', so that
// any two of its iterations can meet, and all pairs are judged afterwards. On both engines and both kinds of memory.
//
//   ZAZEN_LITMUS_ROUNDS=n  rounds of each test (default 1)

import assert from 'node:assert/strict';
import { availableParallelism } from 'node:os';
import { after, before, describe, test } from 'node:test';
import type { Assembler } from '../../src/a64/test-assembler.ts';
import { R, SmpRig } from './smp-rig.ts';
import type { EngineVariant } from './smp-rig.ts';

const ROUNDS = Number(process.env['ZAZEN_LITMUS_ROUNDS'] ?? 1);
/** More rounds when threads hardly met: the machine has other things to do. */
const ROUNDS_MAX = 6;
/** That every thread does at least, and at most, while it waits for others. */
const ITERATIONS = 6_000;
const ITERATIONS_MAX = 24_000;
/** How often a thread should have seen something new. */
const MEETINGS = 100;

// ---- pieces of programs. x0: the iteration's number; x1–x9 and from x18 on are free

type Piece = (a: Assembler) => unknown;
const barrier = (name: 'DMB' | 'DSB', CRm: number): Piece => a => a.emit(name, { CRm });
const [dmb, dmbIsh, dmbLoads, dmbStores] = [15, 11, 9, 10].map(CRm => barrier('DMB', CRm)) as [Piece, Piece, Piece, Piece];
const nothing: Piece = () => {};
/** All that follows misses the TLB. */
const missTlb: Piece = a => a.sys('TLBI VMALLE1');

type Store = (a: Assembler, rt: number, rn: number) => unknown;
type Load = (a: Assembler, rt: number, rn: number) => unknown;
const exclusive = { Rs: 31, Rt2: 31 };
const str: Store = (a, rt, rn) => a.str(rt, rn);
const stlr: Store = (a, rt, rn) => a.stlr(rt, rn);
const swpl: Store = (a, rt, rn) => a.emit('SWP', { size: 3, A: 0, R: 1, Rs: rt, Rn: rn, Rt: 9 });
const swpal: Store = (a, rt, rn) => a.emit('SWP', { size: 3, A: 1, R: 1, Rs: rt, Rn: rn, Rt: 9 });
/** Nobody else writes there, so the comparison succeeds. */
const casl: Store = (a, rt, rn) => a.ldr(9, rn).emit('CAS', { size: 3, L: 0, o0: 1, Rs: 9, Rn: rn, Rt: rt });
let labels = 0;
const stlxr: Store = (a, rt, rn) => {
  const retry = `exclusive ${labels++}`;
  return a.label(retry).ldxr(9, rn).emit('STLXR X', { Rs: 9, Rt2: 31, Rn: rn, Rt: rt }).cbnz(9, retry);
};
const ldr: Load = (a, rt, rn) => a.ldr(rt, rn);
const ldar: Load = (a, rt, rn) => a.ldar(rt, rn);
const ldapr: Load = (a, rt, rn) => a.emit('LDAPR X', { Rn: rn, Rt: rt });
const ldaxr: Load = (a, rt, rn) => a.emit('LDAXR X', { ...exclusive, Rn: rn, Rt: rt });
const ldadda: Load = (a, rt, rn) => a.emit('LDADD', { size: 3, A: 1, R: 0, Rs: 31, Rn: rn, Rt: rt });
/** From an address that depends on what `from` has read. */
const dependent = (from: number): Load => (a, rt, rn) =>
  a.eorReg(8, from, from).addReg(8, rn, 8).ldr(rt, 8);

/** All threads begin together. */
function meet(a: Assembler): void {
  a.mov(1, 1).ldadd(1, 2, R.started).label('meet').ldar(2, R.started)
    .emit('SUBS (register)', { sf: 1, Rm: R.threads, Rn: 2, Rd: 31 }).bCond('ne', 'meet');
}
const compare = (a: Assembler, rn: number, rm: number): Assembler => a.emit('SUBS (register)', { sf: 1, Rm: rm, Rn: rn, Rd: 31 });
const keep = (a: Assembler, rt: number): Assembler =>
  a.emit('STR X (post-index)', { Rt: rt, Rn: R.results, imm9: 8 });

/** A thread that runs `body` for 1, 2, 3 … and keeps what it leaves in `kept`; until `threads` of its kind are done. */
const counting = (kept: readonly number[], body: Piece, threads = 1): Piece => a => {
  meet(a);
  a.label('loop').add(R.k, R.k, 1);
  body(a);
  for (const register of kept) keep(a, register);
  compare(a, R.k, R.iterations).bCond('cc', 'loop').bCond('ne', 'others');
  a.mov(1, 1).ldadd(1, 2, R.finished).label('others');
  if (threads === 1) return;
  a.mov(1, ITERATIONS_MAX);
  compare(a, R.k, 1).bCond('eq', 'end').ldr(1, R.finished).cmp(1, threads).bCond('ne', 'loop').label('end');
};
/** A thread that runs `body` until `others` have finished. */
const serving = (others: number, body: Piece): Piece => a => {
  meet(a);
  a.label('loop').add(R.k, R.k, 1);
  body(a);
  a.ldr(1, R.finished).cmp(1, others).bCond('ne', 'loop');
};

// ---- what is forbidden: functions of what the threads have kept, giving the first offence

type Kept = readonly (readonly bigint[])[];
type Judge = (kept: Kept) => string | undefined;
/** Every `of`-th value, from `at` on. */
const column = (values: readonly bigint[], at: number, of: number): bigint[] => values.filter((_, i) => i % of === at);

/** Thread 0 wrote k and then read y[k - 1]; thread 1 likewise. One of two writes is first, and the later thread reads it. */
export const storeBuffering: Judge = ([first, second]) => {
  for (let k = 1; k <= first!.length; k++) {
    // The first iteration of thread 1 that thread 0 has not seen.
    const j = Number(first![k - 1]!) + 1;
    if (j <= second!.length && second![j - 1]! < k) {
      return `thread 0 wrote ${k} and read ${j - 1}; thread 1 wrote ${j} and read ${second![j - 1]}`;
    }
  }
};
/** Thread 0 read and then wrote k. No value is read before what led to it. */
export const loadBuffering: Judge = ([first, second]) => {
  for (let k = 1; k <= first!.length; k++) {
    const j = Number(first![k - 1]!);
    if (j > 0 && j <= second!.length && second![j - 1]! >= k) {
      return `thread 0 read ${j} and wrote ${k}; thread 1 read ${second![j - 1]} and wrote ${j}`;
    }
  }
};
/** A thread has kept pairs: the first is never ahead of the second. */
const never = (reader: number, earlier: number, later: number, of = 2): Judge => kept => {
  const [a, b] = [column(kept[reader]!, earlier, of), column(kept[reader]!, later, of)];
  const i = a.findIndex((value, n) => value > b[n]!);
  return i < 0 ? undefined : `thread ${reader} read ${a[i]} and after that ${b[i]}`;
};
/** Two readers see two writers' values in one order: not each of them one that the other does not see yet. */
export const oneOrder: Judge = kept => {
  const [a, b, c, d] = [column(kept[2]!, 0, 2), column(kept[2]!, 1, 2), column(kept[3]!, 0, 2), column(kept[3]!, 1, 2)];
  for (let i = 0, j = 0; i < a.length; i++) {
    while (j < c.length && c[j]! <= b[i]!) j++;
    if (j < c.length && d[j]! < a[i]!) {
      return `thread 2 read x = ${a[i]}, y = ${b[i]}; thread 3 y = ${c[j]}, x = ${d[j]}`;
    }
  }
};
const rising = (reader: number): Judge => kept => {
  const i = kept[reader]!.findIndex((value, n, all) => n > 0 && value < all[n - 1]!);
  return i < 0 ? undefined : `thread ${reader} read ${kept[reader]![i - 1]} and after that ${kept[reader]![i]}`;
};
const all = (...judges: Judge[]): Judge => kept => judges.map(judge => judge(kept)).find(found => found !== undefined);

interface Litmus {
  readonly name: string;
  readonly threads: readonly Piece[];
  /** How many values each thread keeps of an iteration. */
  readonly kept: readonly number[];
  readonly judge: Judge;
}

const sb = (name: string, store: Store, between: Piece, load: Load, first: Piece = nothing): Litmus => ({
  name: `SB, ${name}`, kept: [1, 1], judge: storeBuffering,
  threads: [[R.x, R.y], [R.y, R.x]].map(([mine, other]) =>
    counting([1], a => { first(a); store(a, R.k, mine!); between(a); load(a, 1, other!); }, 2)),
});
const lb = (name: string, load: Load, between: Piece, store: Store, value: Piece = nothing): Litmus => ({
  name: `LB, ${name}`, kept: [1, 1], judge: loadBuffering,
  threads: [[R.x, R.y], [R.y, R.x]].map(([read, written]) => counting([1], a => {
    load(a, 1, read!);
    between(a);
    a.movReg(7, R.k);
    value(a);
    store(a, 7, written!);
  }, 2)),
});
const mp = (name: string, [store, middle, load, between, last]: readonly [Store, Piece, Load, Piece, Load], first: Piece = nothing): Litmus => ({
  name: `MP, ${name}`, kept: [0, 2], judge: never(1, 0, 1),
  threads: [
    serving(1, a => { first(a); a.str(R.k, R.x); middle(a); store(a, R.k, R.y); }),
    counting([1, 2], a => { first(a); load(a, 1, R.y); between(a); last(a, 2, R.x); }),
  ],
});
const iriw = (name: string, store: Store, load: Load, between: Piece, last: Load): Litmus => ({
  name: `IRIW, ${name}`, kept: [0, 0, 2, 2], judge: oneOrder,
  threads: [
    serving(2, a => store(a, R.k, R.x)), serving(2, a => store(a, R.k, R.y)),
    ...[[R.x, R.y], [R.y, R.x]].map(([one, other]) =>
      counting([1, 2], a => { load(a, 1, one!); between(a); last(a, 2, other!); }, 2)),
  ],
});
/** x is written by one, passed on by another, and so known to a third. */
const wrc = (name: string, load: Load, between: Piece, store: Store, last: Load): Litmus => ({
  name: `WRC, ${name}`, kept: [0, 0, 2], judge: never(2, 0, 1),
  threads: [
    serving(1, a => a.str(R.k, R.x)),
    serving(1, a => { load(a, 1, R.x); between(a); a.movReg(7, 1); store(a, 7, R.y); }),
    counting([1, 2], a => { load(a, 1, R.y); between(a); last(a, 2, R.x); }),
  ],
});

const litmus: readonly Litmus[] = [
  ...([['DMB SY', dmb], ['DMB ISH', dmbIsh], ['DSB', barrier('DSB', 15)]] as const).map(([name, fence]) => sb(name, str, fence, ldr)),
  sb('STLR and LDAR', stlr, nothing, ldar),
  sb('STLXR and LDAR', stlxr, nothing, ldar),
  sb('SWPAL and LDAR', swpal, nothing, ldar),
  sb('CASL and LDAR', casl, nothing, ldar),
  sb('DMB, without TLB entries', str, a => { dmb(a); missTlb(a); }, ldr, missTlb),
  sb('STLR and LDAR, without TLB entries', stlr, missTlb, ldar, missTlb),
  lb('DMB', ldr, dmb, str),
  lb('DMB LD', ldr, dmbLoads, str),
  lb('LDAR', ldar, nothing, str),
  lb('STLR', ldr, nothing, stlr),
  lb('a value that depends', ldr, nothing, str, a => a.eorReg(8, 1, 1).addReg(7, 7, 8)),
  mp('DMB', [str, dmb, ldr, dmb, ldr]),
  mp('DMB ST and DMB LD', [str, dmbStores, ldr, dmbLoads, ldr]),
  mp('STLR and LDAR', [stlr, nothing, ldar, nothing, ldr]),
  mp('STLR and LDAPR', [stlr, nothing, ldapr, nothing, ldr]),
  mp('STLR and an address that depends', [stlr, nothing, ldr, nothing, dependent(1)]),
  mp('STLXR and LDAXR', [stlxr, nothing, ldaxr, nothing, ldr]),
  mp('SWPL and LDADDA', [swpl, nothing, ldadda, nothing, ldr]),
  mp('CASL and LDAR', [casl, nothing, ldar, nothing, ldr]),
  mp('STLR and LDAR, without TLB entries', [stlr, missTlb, ldar, missTlb, ldr], missTlb),
  {
    name: 'MP, with the data read before as well', kept: [0, 3], judge: all(never(1, 1, 2, 3), never(1, 0, 2, 3)),
    threads: [
      serving(1, a => { a.str(R.k, R.x); dmbStores(a); a.str(R.k, R.y); }),
      counting([1, 2, 3], a => { a.ldr(1, R.x).ldr(2, R.y); dmbLoads(a); a.ldr(3, R.x); }),
    ],
  },
  {
    name: 'CoRR: two loads of one place', kept: [0, 1], judge: rising(1),
    threads: [serving(1, a => a.str(R.k, R.x)), counting([1], a => a.ldr(1, R.x))],
  },
  iriw('DMB', str, ldr, dmb, ldr),
  iriw('LDAR', str, ldar, nothing, ldar),
  iriw('STLR and LDAR', stlr, ldar, nothing, ldar),
  iriw('an address that depends', str, ldr, nothing, dependent(1)),
  wrc('DMB', ldr, dmb, str, ldr),
  wrc('LDAR and STLR', ldar, nothing, stlr, ldr),
  wrc('an address that depends', ldr, a => a.eorReg(8, 1, 1), str, dependent(1)),
];

/** Stores of zeros and of ones in turn: who reads sees one or the other. */
const unTorn = (size: 'H' | 'W' | 'X', offsetBytes: number, writer: Piece, reader: Piece, how: string): Litmus => ({
  name: `stores of ${size} at ${offsetBytes} are seen whole${how}`, kept: [0, 1],
  judge: ([, seen]) => {
    const ones = { H: 0xffffn, W: 0xffff_ffffn, X: 0xffff_ffff_ffff_ffffn }[size];
    const torn = seen!.find(value => value !== 0n && value !== ones);
    return torn === undefined ? undefined : `0x${torn.toString(16)}`;
  },
  threads: [
    serving(1, a => { writer(a); a.str(5, R.x, offsetBytes, size).emit('ORN (register)', { sf: 1, Rm: 5, Rn: 31, Rd: 5 }); }),
    counting([1], a => { reader(a); a.ldr(1, R.x, offsetBytes, size); }),
  ],
});
const torn: readonly Litmus[] = ([
  [nothing, nothing, ''], [missTlb, nothing, ' when the TLB misses them'], [nothing, missTlb, ' when loads miss the TLB'],
] as const).flatMap(([writer, reader, how]) => ([['H', 2], ['W', 4], ['X', 8]] as const)
  .map(([size, offset]) => unTorn(size, offset, writer, reader, how)));

// ---- counting together

/** Each thread adds one to x. */
const increments: readonly (readonly [name: string, increment: Piece])[] = [
  ['LDXR and STXR', a => again(a, l => a.ldxr(1, R.x).add(1, 1, 1).stxr(2, 1, R.x).cbnz(2, l))],
  ['LDAXR and STLXR', a => again(a, l => {
    ldaxr(a, 1, R.x);
    return a.add(1, 1, 1).emit('STLXR X', { Rs: 2, Rt2: 31, Rn: R.x, Rt: 1 }).cbnz(2, l);
  })],
  ['LDADD', a => a.mov(1, 1).ldadd(1, 2, R.x)],
  ['CAS', a => again(a, l => compare(a.ldr(1, R.x).movReg(3, 1).add(2, 1, 1).cas(3, 2, R.x), 3, 1).bCond('ne', l))],
  ['a lock of SWPA and STLR', a => again(a, l => a.mov(1, 1)
    .emit('SWP', { size: 3, A: 1, R: 0, Rs: 1, Rn: R.y, Rt: 2 }).cbnz(2, l)
    .ldr(3, R.x).add(3, 3, 1).str(3, R.x).stlr(31, R.y))],
  ['a ticket lock', a => {
    a.mov(1, 1).emit('LDADD', { size: 3, A: 1, R: 0, Rs: 1, Rn: R.y, Rt: 2 });
    again(a, l => compare(a.ldar(3, R.z), 3, 2).bCond('ne', l));
    return a.ldr(3, R.x).add(3, 3, 1).str(3, R.x).add(2, 2, 1).stlr(2, R.z);
  }],
  ['CASP, both halves alike', a => again(a, l => {
    a.ldp(2, 3, R.x).movReg(6, 2).add(4, 2, 1).add(5, 3, 1).movReg(1, 3).movReg(7, 3);
    a.movReg(18, 2).movReg(19, 3).emit('CASP X', { L: 1, o0: 1, Rs: 18, Rn: R.x, Rt: 4 });
    return compare(compare(a, 18, 6).bCond('ne', l), 19, 7).bCond('ne', l);
  })],
  ['LDXP and STXP, both halves alike', a => again(a, l => a.emit('LDXP X', { Rs: 31, Rt2: 3, Rn: R.x, Rt: 2 })
    .add(2, 2, 1).add(3, 3, 1).emit('STXP X', { Rs: 4, Rt2: 3, Rn: R.x, Rt: 2 }).cbnz(4, l))],
];
function again(a: Assembler, body: (label: string) => unknown): void {
  const label = `again ${labels++}`;
  a.label(label);
  body(label);
}
const PAIRS = /both halves/;
const INCREMENTS = 2000;

// ---- the judges themselves

test('the judges know what is forbidden', () => {
  const forbidden: readonly (readonly [Judge, Kept])[] = [
    [storeBuffering, [[0n, 1n], [0n, 1n]]], [storeBuffering, [[0n, 0n, 1n], [3n, 2n, 2n]]],
    [loadBuffering, [[1n], [1n]]], [loadBuffering, [[0n, 2n], [0n, 2n]]],
    [never(1, 0, 1), [[], [1n, 1n, 3n, 2n]]], [rising(0), [[1n, 3n, 2n]]],
    [oneOrder, [[], [], [1n, 0n], [1n, 0n]]], [oneOrder, [[], [], [0n, 0n, 5n, 2n], [2n, 5n, 3n, 4n]]],
  ];
  for (const [judge, kept] of forbidden) assert.notEqual(judge(kept), undefined);
  const allowed: readonly (readonly [Judge, Kept])[] = [
    [storeBuffering, [[0n, 1n], [2n, 2n]]], [storeBuffering, [[1n, 1n], [0n, 2n]]], [loadBuffering, [[0n, 1n], [0n, 1n]]],
    [never(1, 0, 1), [[], [1n, 1n, 2n, 4n]]], [rising(0), [[1n, 1n, 2n]]],
    [oneOrder, [[], [], [1n, 0n], [0n, 0n]]], [oneOrder, [[], [], [5n, 2n], [3n, 5n]]],
  ];
  for (const [judge, kept] of allowed) assert.equal(judge(kept), undefined);
});

// ---- on the engines

const variants: readonly (readonly [name: string, EngineVariant])[] = [
  ['interpreted, i32 memory', { addressType: 'i32' }],
  ['interpreted, i64 memory', { addressType: 'i64' }],
  ['compiled, i32 memory', { addressType: 'i32', regionMax: 256 }],
  ['compiled in regions of one instruction, i64 memory', { addressType: 'i64', regionMax: 1 }],
];

for (const [name, variant] of variants) {
  describe(`memory ordering: ${name}`, () => {
    let rig: SmpRig;
    const programs = new Map<Litmus, number[]>();
    const counters = new Map<Piece, number>();
    const relaxed = sb('without a barrier', str, nothing, ldr);
    before(async () => {
      rig = new SmpRig(variant);
      for (const one of [...litmus, ...torn, relaxed]) programs.set(one, one.threads.map(write => rig.add(a => { write(a); })));
      for (const [, increment] of increments) counters.set(increment, rig.add(a => counting([], increment)(a)));
      await rig.start();
    });
    after(() => rig.close());

    /** One round: what each thread has kept, and how often somebody saw something new. */
    const play = (one: Litmus): { kept: Kept; meetings: number } => {
      rig.run(programs.get(one)!, ITERATIONS);
      const kept = one.kept.map((count, thread) => rig.results(thread, count * rig.iterations(thread)));
      const changes = kept.map(values => values.reduce((sum, value, i) => sum + Number(i > 0 && value !== values[i - 1]), 0));
      return { kept, meetings: changes.reduce((sum, change) => sum + change, 0) };
    };
    let allMeetings = 0;
    const judge = (one: Litmus): void => {
      let meetings = 0;
      for (let round = 0; round < ROUNDS || (meetings < MEETINGS && round < ROUNDS_MAX); round++) {
        const played = play(one);
        assert.equal(one.judge(played.kept), undefined);
        meetings += played.meetings;
      }
      allMeetings += meetings;
    };
    for (const one of [...litmus, ...torn]) test(one.name, () => judge(one));

    test('threads have met', t => {
      t.diagnostic(`values of others that were new: ${allMeetings}`);
      assert.ok(allMeetings > litmus.length * MEETINGS);
    });

    test('SB without a barrier: both may miss the other\'s store, and where the processor shows it they do', t => {
      let seen = 0;
      for (let round = 0; round < 10 * ROUNDS_MAX && seen === 0; round++) {
        if (relaxed.judge(play(relaxed).kept) !== undefined) seen++;
      }
      if (seen === 0 && availableParallelism() > 1) t.diagnostic('not seen: the threads have hardly run at the same time');
    });

    for (const [how, increment] of increments) {
      for (const threads of [2, 4]) {
        test(`${threads} threads count together by ${how}`, () => {
          rig.run(Array<number>(threads).fill(counters.get(increment)!), INCREMENTS);
          assert.equal(rig.read('x'), BigInt(threads * INCREMENTS));
          if (PAIRS.test(how)) assert.equal(rig.read('x', 1), BigInt(threads * INCREMENTS));
        });
      }
    }
  });
}
