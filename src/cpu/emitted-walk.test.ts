// The walk in emitted code against the one in TypeScript: over random tables, registers and addresses it makes the same
// TLB entries where it makes any, and it makes one wherever nothing out of the ordinary is about the address; the faults that it
// tells of are the same.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { systemRegister } from '../a64/system-registers.ts';
import { FRAME, FRAME_MAPPING, FRAME_PIN, P2M_KIND, P2M_READ_ONLY, P2M_VALUE_SHIFT } from '../abi/machine-memory.ts';
import {
  LINE_BYTES, TLB_ENTRIES, TLB_ENTRY_BYTES, TLB_INVALID_TAG, TLB_SET_BYTES, tlbCoverage, tlbCoverageOffset, tlbOffsets, vcpuRecord,
} from '../abi/vcpu.ts';
import { SeededRandom } from '../base/random.ts';
import { ModuleBuilder } from '../wasm/module.ts';
import { ACCESS_ALIGNED, ACCESS_UNPRIVILEGED } from './emitted-calls.ts';
import { FAULT_ANSWERS, emitWalk } from './emitted-walk.ts';
import { handlerSignature, interpreterLayout } from './handlers.ts';
import { linesInUse } from './lines-in-use.ts';
import { SCTLR_UCI, cacheOperation } from './maintenance.ts';
import { GUEST_BASE, createTestMachine } from './test-machine.ts';
import { fillDataTlb, fillExecTlb, flushAddress, flushAll, flushFrame, flushNotGlobal, noteFill, noteGlobalInLowerHalf, setPan } from './tlb.ts';
import { ACCESS_EXEC, ACCESS_READ, ACCESS_WRITE } from './translation.ts';
import type { VcpuState } from './vcpu-state.ts';

const at = vcpuRecord.at;
const SCTLR_M = 1n;
const SCTLR_A = 2n;
const SCTLR_WXN = 1n << 19n;
/** IPS of 40 bits. */
const IPS = 2n << 32n;
const TABLE = 3n;
const BLOCK = 1n;
const AF = 1n << 10n;
const ROOT = GUEST_BASE + 0x10_0000;

interface Walk {
  fillData(vcpu: number, va: bigint, sizeAndFlags: number, isWrite: number): number;
  fillExec(vcpu: number, va: bigint): number;
  maintain(vcpu: number, operation: number, argument: bigint): number;
}

function machineWithWalk(addressType: 'i32' | 'i64') {
  const m = createTestMachine({ addressType });
  const module = new ModuleBuilder(handlerSignature, { addressType, minPages: 1, maxPages: m.machine.parameters.sizeBytes / 65536 });
  const walk = emitWalk(module, interpreterLayout(m.machine));
  for (const name of ['fillData', 'fillExec', 'maintain'] as const) module.export(name, walk[name]);
  const { memory } = m.machine;
  const { exports } = new WebAssembly.Instance(new WebAssembly.Module(module.encode()), { env: { memory } });
  const write = (physical: number, descriptor: bigint): void => {
    m.machine.u64[(m.machine.firstFrame * 4096 + physical - GUEST_BASE) / 8] = descriptor;
  };
  return { ...m, walk: exports as unknown as Walk, write };
}
type Rig = ReturnType<typeof machineWithWalk>;

const split = (va: bigint): [number, number] => [Number(va & 0xffff_ffffn), Number(BigInt.asUintN(64, va) >> 32n)];

/** Tables of four levels and of what leads out of them, with everything random that a descriptor may say. */
function randomTables(rig: Rig, random: SeededRandom): void {
  const one = (sides: number): boolean => random.u32() % sides === 0;
  for (let page = 0; page < 16; page++) {
    for (let index = 0; index < 512; index++) {
      const table = BigInt(ROOT + 4096 * (random.u32() % 16)) | TABLE;
      const output = BigInt(GUEST_BASE + 4096 * (256 + random.u32() % 64));
      const leaf = (one(3) ? output & ~0x1f_ffffn | BLOCK : output | TABLE)
        | (one(20) ? 0n : AF) | (one(3) ? 1n << 11n : 0n) | (BigInt(random.u32() % 4) << 6n) | (one(10) ? 1n << 2n : 0n)
        | (one(3) ? 1n << 51n : 0n) | (one(4) ? 1n << 53n : 0n) | (one(4) ? 1n << 54n : 0n);
      const hierarchical = one(10) ? BigInt(random.u32() % 32) << 59n : 0n;
      rig.write(ROOT + 4096 * page + 8 * index, one(30) ? 0n : one(2) ? table | hierarchical : leaf | hierarchical);
    }
  }
}

function randomRegisters(rig: Rig, random: SeededRandom): void {
  const one = (sides: number): boolean => random.u32() % sides === 0;
  const sizes = [16, 16, 25, 28, 34, 39];
  const tcr = IPS | BigInt(sizes[random.u32() % 6]!) | (BigInt(sizes[random.u32() % 6]!) << 16n)
    | (one(10) ? 1n << 7n : 0n) | (one(10) ? 1n << 23n : 0n) | (one(10) ? 1n << 55n : 0n) | (one(10) ? 1n << 56n : 0n)
    | (one(4) ? 3n << 37n : 0n) | (one(4) ? 3n << 39n : 0n);
  const values = [
    [at.sctlrEl1, SCTLR_M | (one(4) ? SCTLR_WXN : 0n) | (one(30) ? SCTLR_A : 0n)], [at.tcrEl1, one(30) ? tcr & ~(7n << 32n) : tcr],
    [at.ttbr0El1, BigInt(ROOT)], [at.ttbr1El1, BigInt(ROOT + 4096)],
    // Attribute 0: normal memory; 1: device.
    [at.mairEl1, 0x04ffn],
  ] as const;
  const { vcpu } = rig;
  for (const [offset, value] of values) vcpu.set64(offset, value);
  vcpu.enterEl(random.u32() & 1, 1);
  vcpu.set32(at.pan, one(3) ? 1 << 22 : 0);
}

function randomAddress(random: SeededRandom): bigint {
  const bits = [12, 21, 30, 39, 48][random.u32() % 5]!;
  const offset = (BigInt(random.u32()) << 32n | BigInt(random.u32())) & ((1n << BigInt(bits)) - 1n);
  const isUpper = random.u32() % 2 === 0;
  // The upper half begins where T1SZ says: some of the addresses lie in it, whatever that is.
  const va = isUpper ? BigInt.asUintN(64, -1n << BigInt([39, 36, 30, 25, 48, 48][random.u32() % 6]!)) + offset : offset;
  return BigInt.asUintN(64, random.u32() % 40 === 0 ? va ^ (1n << 60n) : va);
}

interface TestAccess {
  readonly va: bigint;
  readonly kind: 0 | 1 | 2;
  readonly unprivileged: boolean;
}
const tlbName = { [ACCESS_READ]: 'read', [ACCESS_WRITE]: 'write', [ACCESS_EXEC]: 'exec' } as const;
const levelOf = ({ vcpu }: Rig, { unprivileged }: TestAccess): 0 | 1 => unprivileged ? 0 : vcpu.el as 0 | 1;

function emittedWalk(rig: Rig, { va, kind, unprivileged }: TestAccess): number {
  const { walk, vcpu: { address } } = rig;
  return kind === ACCESS_EXEC ? walk.fillExec(address, va) : walk.fillData(address, va, 8 | (unprivileged ? ACCESS_UNPRIVILEGED : 0), kind);
}

/** By TypeScript. @returns whether it makes an entry */
function fill(rig: Rig, access: TestAccess): boolean {
  const { vcpu, engine: { translation, stageTwo, decodeCache } } = rig;
  const [low, high] = split(access.va);
  const el = levelOf(rig, access);
  if (!translation.translate(vcpu, low, high, access.kind, el) || translation.device) return false;
  const { guestFrame, reach, global, user } = translation;
  const isWrite = access.kind === ACCESS_WRITE;
  const mfn = isWrite ? stageTwo.frameForWrite(vcpu, guestFrame) : stageTwo.frameForRead(vcpu, guestFrame);
  if (mfn <= 0) return false;
  const tlb = tlbOffsets[el][tlbName[access.kind]];
  noteFill(vcpu, low, high, reach, global, el, user && access.kind !== ACCESS_EXEC);
  if (access.kind === ACCESS_EXEC) fillExecTlb(vcpu, tlb, low, high, decodeCache.slotFor(mfn));
  else fillDataTlb(vcpu, tlb, low, high, mfn);
  return true;
}

/** As when others know already that there may be global entries of the lower half: the first is not for emitted code. */
function forgetEntries(vcpu: VcpuState): void {
  flushAll(vcpu);
  noteGlobalInLowerHalf(vcpu);
}

/** The one entry that the TLBs have, where it is, and what is known of it; all are empty afterwards. */
function takeEntry(rig: Rig, access: TestAccess): string {
  const { vcpu, machine: { u32, u64 } } = rig;
  const [coverage, end] = [tlbCoverageOffset, tlbCoverageOffset + tlbCoverage.sizeBytes].map(offset => (vcpu.address + offset) / 4);
  const found = [...u32.subarray(coverage, end)].map(word => word.toString(16));
  for (const line of linesInUse(vcpu, tlbOffsets[0].read, 2 * TLB_SET_BYTES)) {
    for (let index = line; index < line + LINE_BYTES / 4; index += TLB_ENTRY_BYTES / 4) {
      if ((u32[index]! & TLB_INVALID_TAG) !== 0) continue;
      const target = u64[index / 2 + 1]!;
      const isWhole = rig.machine.parameters.addressType === 'i64' && access.kind !== ACCESS_EXEC;
      found.push(`${index}: ${u64[index / 2]!.toString(16)} ${(isWhole ? target : target & 0xffff_ffffn).toString(16)}`);
    }
  }
  forgetEntries(vcpu);
  return found.join(' ');
}

for (const addressType of ['i32', 'i64'] as const) {
  test(`makes the entries that TypeScript makes (${addressType} memory)`, () => {
    const random = new SeededRandom(7);
    const rig = machineWithWalk(addressType);
    const { vcpu } = rig;
    const made = [0, 0, 0];
    const faults = [0, 0, 0];
    let updates = 0;
    const tables = rig.ram.subarray(ROOT - GUEST_BASE, ROOT - GUEST_BASE + 16 * 4096);
    for (let round = 0; round < 40; round++) {
      if (round % 8 === 0) randomTables(rig, random);
      randomRegisters(rig, random);
      forgetEntries(vcpu);
      for (let i = 0; i < 100; i++) {
        const kind = random.u32() % 3 as 0 | 1 | 2;
        const access = { va: randomAddress(random) & ~7n, kind, unprivileged: kind !== ACCESS_EXEC && random.u32() % 8 === 0 };
        const what = `seed 7, round ${round}, address ${access.va.toString(16)}, access ${kind}`;
        const none = takeEntry(rig, access);
        vcpu.readFrames.clear();
        vcpu.writeFrames.clear();
        assert.equal(emittedWalk(rig, access), 0, `${what}: no frame is known`);
        rig.engine.translation.status = -1;
        const before = tables.slice();
        const isFilled = fill(rig, access);
        const after = tables.slice();
        const { status } = rig.engine.translation;
        const expected = takeEntry(rig, access);
        // What TypeScript has set in descriptors is to be set once more.
        tables.set(before);
        const entry = emittedWalk(rig, access);
        const actual = takeEntry(rig, access);
        if (entry !== 0) assert.equal(Buffer.compare(tables, after), 0, `${what}: access flag and dirty state`);
        if (entry !== 0 && Buffer.compare(before, after) !== 0) updates++;
        tables.set(after);
        const isStrict = (vcpu.get64(at.sctlrEl1) & SCTLR_A) !== 0n && kind !== ACCESS_EXEC;
        const hasFewBits = (vcpu.get64(at.tcrEl1) >> 32n & 7n) < 2n;
        const isTagged = ![0n, 0xffn].includes(access.va >> 56n);
        if (!isFilled || isStrict || hasFewBits || isTagged) {
          assert.ok(entry === 0 || !isFilled && entry === 1 + status, `${what}: ${entry}`);
          if (entry !== 0) faults[kind]!++;
          // An entry that cannot be made for want of decoded code is announced all the same.
          if (!isFilled && kind !== ACCESS_EXEC) assert.equal(actual, none, what);
          continue;
        }
        assert.equal(actual, expected, what);
        const index = Number(access.va >> 12n & BigInt(TLB_ENTRIES - 1));
        assert.equal(entry, vcpu.address + tlbOffsets[levelOf(rig, access)][tlbName[kind]] + index * TLB_ENTRY_BYTES, what);
        made[kind]!++;
      }
    }
    for (const count of [...made, ...faults]) assert.ok(count > 50, `${made.join()} entries, ${faults.join()} faults`);
    assert.ok(updates > 20, `${updates} updates of descriptors`);
  });
}

/** One page, which EL0 may write and run, at address 0x1000 of a table of four levels. */
function machineWithPage(): Rig & { gfn: number } {
  const rig = machineWithWalk('i32');
  for (let level = 0; level < 3; level++) rig.write(ROOT + 4096 * level, BigInt(ROOT + 4096 * (level + 1)) | TABLE);
  const page = GUEST_BASE + 0x20_0000;
  rig.write(ROOT + 4096 * 3 + 8, BigInt(page) | TABLE | AF | 1n << 6n);
  const { vcpu } = rig;
  vcpu.set64(at.sctlrEl1, SCTLR_M);
  vcpu.set64(at.tcrEl1, IPS | 16n | 16n << 16n);
  vcpu.set64(at.ttbr0El1, BigInt(ROOT));
  vcpu.set64(at.mairEl1, 0xffn);
  vcpu.enterEl(0, 0);
  forgetEntries(vcpu);
  return { ...rig, gfn: page / 4096 };
}
const PAGE_READ: TestAccess = { va: 0x1000n, kind: ACCESS_READ, unprivileged: false };

/** Two pages that have the same place in a TLB, each used once: the first is among the victims. */
function machineWithVictim(): { rig: Rig; use: (va: bigint, kind: 0 | 1 | 2) => number } {
  const rig = machineWithPage();
  const FAR_TABLE = ROOT + 4096 * 4;
  rig.write(ROOT + 4096 * 2 + 8 * Number(FAR >> 21n), BigInt(FAR_TABLE) | TABLE);
  rig.write(FAR_TABLE + 8, BigInt(GUEST_BASE + 0x20_1000) | TABLE | AF | 1n << 6n);
  const { vcpu } = rig;
  const use = (va: bigint, kind: 0 | 1 | 2): number => {
    const before = vcpu.get32(at.tlbMisses);
    const entry = emittedWalk(rig, { va, kind, unprivileged: false });
    if (entry <= FAULT_ANSWERS) return -1;
    assert.equal(rig.machine.u64[entry / 8], va, 'the entry is that of the page');
    return vcpu.get32(at.tlbMisses) - before;
  };
  for (const va of [NEAR, FAR]) {
    for (const kind of [ACCESS_READ, ACCESS_WRITE, ACCESS_EXEC] as const) {
      assert.ok(fill(rig, { va, kind, unprivileged: false }));
      // That entry was made by TypeScript.
      use(va, kind);
    }
  }
  return { rig, use };
}
const NEAR = 0x1000n;
/** In a TLB of up to 4096 entries. */
const FAR = 0x100_1000n;

test('pages of one place that are used in turn are not walked to again', () => {
  const { use } = machineWithVictim();
  for (const kind of [ACCESS_READ, ACCESS_WRITE, ACCESS_EXEC] as const) {
    use(NEAR, kind);
    for (let i = 0; i < 10; i++) assert.deepEqual([use(FAR, kind), use(NEAR, kind)], [0, 0], `access ${kind}`);
  }
});

const forgetting: Readonly<Record<string, (vcpu: VcpuState) => void>> = {
  'all entries': vcpu => flushAll(vcpu),
  'an address': vcpu => flushAddress(vcpu, ...split(NEAR)),
  'another ASID': vcpu => flushNotGlobal(vcpu),
  'a block': vcpu => {
    noteFill(vcpu, ...split(NEAR), 21, false, 0, false);
    flushAddress(vcpu, 0x5000, 0);
  },
};
for (const [what, forget] of Object.entries(forgetting)) {
  test(`an entry that was put out of a TLB does not come back after a flush of ${what}`, () => {
    for (const kind of [ACCESS_READ, ACCESS_WRITE, ACCESS_EXEC] as const) {
      const { rig, use } = machineWithVictim();
      use(NEAR, kind);
      assert.equal(use(FAR, kind), 0);
      rig.write(ROOT + 4096 * 3 + 8, 0n);
      assert.equal(use(NEAR, kind), 0, 'it is there still, as the architecture allows');
      assert.equal(use(FAR, kind), 0);
      forget(rig.vcpu);
      assert.equal(use(NEAR, kind), -1, `access ${kind}`);
    }
  });
}

test('an entry that was put out of a TLB does not come back when EL1 may not use pages of EL0 any more', () => {
  for (const kind of [ACCESS_READ, ACCESS_WRITE] as const) {
    const { rig, use } = machineWithVictim();
    rig.vcpu.enterEl(1, 1);
    for (const va of [NEAR, FAR]) assert.equal(use(va, kind), 1);
    assert.equal(use(NEAR, kind), 0);
    setPan(rig.vcpu, true);
    for (const va of [NEAR, FAR]) assert.equal(use(va, kind), -1, `access ${kind}`);
  }
});

test('an entry that was put out of a TLB does not come back when its frame is another', () => {
  for (const kind of [ACCESS_READ, ACCESS_EXEC] as const) {
    const { rig, use } = machineWithVictim();
    use(NEAR, kind);
    assert.equal(use(FAR, kind), 0);
    const mfn = rig.machine.firstFrame + 0x200;
    flushFrame(rig.vcpu, mfn, rig.engine.decodeCache.knownSlot(mfn));
    assert.equal(use(NEAR, kind), 1, `access ${kind}: it is walked to`);
  }
});

test('leaves accesses that cross a page and misaligned ordered ones alone', () => {
  const rig = machineWithPage();
  assert.ok(fill(rig, PAGE_READ));
  const { walk: { fillData }, vcpu: { address } } = rig;
  const missesBefore = rig.vcpu.get32(at.tlbMisses);
  assert.equal(fillData(address, 0x1ff9n, 8, 0), 0);
  assert.notEqual(fillData(address, 0x1ff8n, 8, 0), 0);
  assert.equal(fillData(address, 0x1004n, 8 | ACCESS_ALIGNED, 0), 0);
  assert.notEqual(fillData(address, 0x1004n, 4 | ACCESS_ALIGNED, 0), 0);
  assert.notEqual(fillData(address, 0x1004n, 8, 0), 0);
  assert.equal(rig.vcpu.get32(at.tlbMisses) - missesBefore, 3, 'what was served is counted');
});

test('reads from the domain\'s p2m what it has not been told, and writes to what the domain has alone', () => {
  const rig = machineWithPage();
  const { vcpu, machine, gfn } = rig;
  const words = machine.u32;
  // The last frames of the machine, as a tree of two nodes and a root; the word that names the root is behind the record.
  const [root, middle, leaf] = [1, 2, 3].map(n => machine.frameEnd - n) as [number, number, number];
  for (const node of [root, middle, leaf]) words.fill(0, node * 1024, (node + 1) * 1024);
  const put = (node: number, index: number, kind: number, value: number): void => {
    words[node * 1024 + 2 * index] = value << P2M_VALUE_SHIFT | kind;
  };
  const mfnOf = (guestFrame: number): number => machine.firstFrame + guestFrame - GUEST_BASE / 4096;
  const base = GUEST_BASE / 4096;
  put(root, base >>> 18, P2M_KIND.node, middle);
  put(middle, base >>> 9 & 511, P2M_KIND.node, leaf);
  put(middle, (base >>> 9 & 511) + 1, P2M_KIND.node, leaf);
  for (const table of [0, 1, 2, 3]) put(leaf, ROOT / 4096 - base + table, P2M_KIND.frame, mfnOf(ROOT / 4096 + table));
  put(leaf, gfn & 511, P2M_KIND.frame, mfnOf(gfn));
  const rootPlace = machine.vcpuAddress(3);
  words[rootPlace / 4] = root;
  vcpu.set32(tlbCoverageOffset + tlbCoverage.at.stageTwoRoot, rootPlace);
  const tries = (): boolean => {
    vcpu.readFrames.clear();
    return emittedWalk(rig, PAGE_READ) !== 0;
  };
  assert.ok(tries());
  assert.equal(vcpu.readFrames.get(gfn), mfnOf(gfn));
  assert.equal(takeEntry(rig, PAGE_READ).split(' ').at(-1), (mfnOf(gfn) * 4096 - 0x1000).toString(16));
  // The page is the zero frame, an image's, absent; a node is none, or beyond the frames.
  for (const kind of [P2M_KIND.zero, P2M_KIND.image, P2M_KIND.absent]) {
    put(leaf, gfn & 511, kind, mfnOf(gfn));
    assert.equal(tries(), false);
  }
  put(leaf, gfn & 511, P2M_KIND.frame, mfnOf(gfn));
  put(root, base >>> 18, P2M_KIND.zero, middle);
  assert.equal(tries(), false);
  put(root, base >>> 18, P2M_KIND.node, machine.frameEnd);
  assert.equal(tries(), false);
  put(root, base >>> 18, P2M_KIND.node, middle);
  assert.ok(tries());

  const count = (mfn: number): number => (machine.region('frameTable').offsetBytes + mfn * FRAME.sizeBytes + FRAME.at.count) / 4;
  const sequence = count(root) + (FRAME.at.decode - FRAME.at.count) / 4;
  const writes = (): boolean => {
    vcpu.writeFrames.clear();
    return emittedWalk(rig, { ...PAGE_READ, kind: ACCESS_WRITE }) !== 0;
  };
  for (const mfn of [middle, leaf, mfnOf(gfn)]) words[count(mfn)] = FRAME_MAPPING + FRAME_PIN;
  assert.ok(writes());
  assert.equal(vcpu.writeFrames.get(gfn), mfnOf(gfn));
  flushAll(vcpu);
  noteGlobalInLowerHalf(vcpu);
  for (const mfn of [middle, leaf, mfnOf(gfn)]) {
    words[count(mfn)] = 2 * FRAME_MAPPING;
    assert.equal(writes(), false, 'shared');
    words[count(mfn)] = FRAME_MAPPING;
  }
  put(leaf, gfn & 511, P2M_KIND.frame | P2M_READ_ONLY, mfnOf(gfn));
  assert.equal(writes(), false);
  assert.ok(tries());
  put(leaf, gfn & 511, P2M_KIND.frame, mfnOf(gfn));
  words[sequence] = 5;
  assert.equal(writes(), false, 'the tree is being changed');
  words[sequence] = 4;
  assert.ok(writes());
});

test('cache maintenance by address is done where nothing is to be done', () => {
  const rig = machineWithPage();
  const { walk: { maintain }, vcpu, engine, gfn, machine } = rig;
  const { IC_IVAU, DC_CVAU, DC_CVAC, DC_CIVAC } = cacheOperation;
  const done = (...operations: number[]): number[] => operations.map(operation => maintain(vcpu.address, operation, 0x1040n));
  assert.ok(fill(rig, PAGE_READ));
  assert.deepEqual(done(IC_IVAU, DC_CVAU, DC_CVAC, DC_CIVAC), [0, 0, 0, 0], 'trapped for EL0');
  vcpu.set64(at.sctlrEl1, SCTLR_M | BigInt(SCTLR_UCI));
  assert.deepEqual(done(IC_IVAU, DC_CVAU, DC_CVAC, DC_CIVAC), [1, 1, 1, 1]);
  assert.equal(maintain(vcpu.address, DC_CVAU, 0x2040n), 0, 'nothing is mapped there');
  assert.equal(maintain(vcpu.address, systemRegister(1, 3, 7, 4, 1), 0x1040n), 0, 'DC ZVA is another thing');
  engine.decodeCache.slotFor(machine.firstFrame + gfn - GUEST_BASE / 4096);
  assert.deepEqual(done(IC_IVAU, DC_CVAU), [0, 1], 'there is decoded code');
});

test('the first global entry of the lower half is left to TypeScript, which tells others of it before it reads the tables', () => {
  const rig = machineWithPage();
  const { vcpu, gfn } = rig;
  const access = { va: 0x1000n, kind: ACCESS_READ, unprivileged: false } as const;
  rig.engine.stageTwo.frameForRead(vcpu, gfn);
  const flag = tlbCoverageOffset + tlbCoverage.at.globalInLowerHalf;
  flushAll(vcpu);
  assert.equal(emittedWalk(rig, access), 0);
  const { stageTwo } = rig.engine;
  const frameForRead = stageTwo.frameForRead.bind(stageTwo);
  /** Of each look at a table whether it was told before. */
  const told: number[] = [];
  stageTwo.frameForRead = (of, guestFrame) => {
    told.push(of.get32(flag));
    return frameForRead(of, guestFrame);
  };
  assert.ok(fill(rig, access));
  assert.deepEqual(told, [0, 0, 0, 0, 1, 1, 1, 1, 1], 'a walk for nothing, one that counts, and the page itself');
  takeEntry(rig, access);
  assert.notEqual(emittedWalk(rig, access), 0, 'from then on they are made here');
});
