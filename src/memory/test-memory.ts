// What the tests of this room share: a machine small enough to run out of frames, and ways to look at frames.

import assert from 'node:assert/strict';
import type { MachineParameters } from '../abi/machine-memory.ts';
import { audit } from './audit.ts';
import type { AuditClaims, AuditReport } from './audit.ts';
import { Heap } from './heap.ts';
import { MachineMemory } from './machine-memory.ts';

/** The records take the first 576 KiB or a little more. */
export const smallMachine = {
  sizeBytes: 4 * 1024 * 1024,
  domainCount: 16,
  domainStrideBytes: 4096,
  vcpuCount: 1,
  vcpuStrideBytes: 4096,
  codeBytes: 0,
} as const satisfies Partial<MachineParameters>;

export function createMachine(parameters: Partial<MachineParameters> = {}): MachineMemory {
  const memory = MachineMemory.create({ ...smallMachine, ...parameters });
  Heap.initialize(memory);
  return memory;
}

/** The seed of all random tests; ZAZEN_TEST_SEED replays another one. */
export const seed = Number(process.env['ZAZEN_TEST_SEED'] ?? 1);

/** Marks a frame, first and last word and one between. */
export function mark(memory: MachineMemory, mfn: number, tag: number): void {
  const base = mfn * 1024;
  memory.u32[base] = memory.u32[base + 500] = memory.u32[base + 1023] = tag;
}

/** @returns the mark of a frame, 0 if it is all zero, NaN if it is neither marked nor zero */
export function markOf(memory: MachineMemory, mfn: number): number {
  const base = mfn * 1024;
  const tag = memory.u32[base]!;
  for (let i = 0; i < 1024; i++) {
    if (memory.u32[base + i] !== (i === 0 || i === 500 || i === 1023 ? tag : 0)) return NaN;
  }
  return tag;
}

export function assertAudit(heap: Heap, claims: AuditClaims): AuditReport {
  const report = audit(heap, { readClean: true, ...claims });
  assert.deepEqual(report.problems, []);
  const { frames, clean, cached, dirty, scrubbing, used, tables } = report;
  assert.equal(clean + cached + dirty + scrubbing + used + tables, frames);
  return report;
}

// ---- What workers.test.ts and its threads (test-worker.ts) agree on ------------------------------------------------

export interface WorkerTask {
  readonly memory: WebAssembly.Memory;
  readonly agent: number;
  readonly seed: number;
  readonly work: 'heap' | 'fault' | 'fork' | 'replace' | 'load';
  readonly rounds: number;
  /** The tree that all share. */
  readonly root: number;
}

export interface WorkerResult {
  readonly held: number[];
  readonly roots: number[];
  readonly outOfFrames: number;
  readonly scrubbed: number;
}

export const FAULT_GFNS = 300;
export const TEMPLATE_GFNS = 64;
/** Pages of the image that all load, in more than one node. */
export const IMAGE_GFNS = 700;
