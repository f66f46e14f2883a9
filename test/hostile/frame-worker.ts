// A thread of scrubbing.test.ts. As a *filler* it writes a pattern into a domain's memory; as a *looker* it takes frames
// from the heap as fast as it can, looks for what others have left in them, and leaves something in them itself.

import assert from 'node:assert/strict';
import { workerData } from 'node:worker_threads';
import { Heap } from '../../src/memory/heap.ts';
import { MachineMemory } from '../../src/memory/machine-memory.ts';
import { P2m } from '../../src/memory/p2m.ts';

export interface FrameTask {
  readonly memory: WebAssembly.Memory;
  readonly agent: number;
  readonly role: 'filler' | 'looker';
  /** See CONTROL. */
  readonly control: Int32Array;
}

/** Words that test and threads share. */
export const CONTROL = {
  /** What the threads are to do: one of COMMAND, counted up by 4 for each command. */
  command: 0,
  /** Filler: root and pages of the domain; filler n of `fillers` fills every page with gfn % fillers = n. */
  root: 2,
  firstGfn: 3,
  pages: 4,
  fillers: 5,
  /** Looker: frames looked at so far, and the ones that were not zero. */
  looked: 6,
  found: 7,
  /** A value that was found. */
  value: 8,
  /** For each thread the last command that it has done; it has then nothing of the heap's. */
  done: 16,
} as const;
export const COMMAND = { rest: 0, fill: 1, look: 2 } as const;

/** The host's own threads have the lower ones. */
export const FIRST_AGENT = 66;
const HELD_MAX = 4000;
const FRAME_WORDS = 1024;

/** @param agent from FIRST_AGENT on, one after the other; fillers and lookers hear the same commands and each do theirs */
export function runFrameWorker({ memory, agent, role, control }: FrameTask): void {
  const machine = MachineMemory.attach(memory);
  const heap = new Heap(machine, agent);
  const p2m = new P2m(heap);
  for (let seen = 0; ;) {
    Atomics.wait(control, CONTROL.command, seen);
    const command = Atomics.load(control, CONTROL.command);
    if (command === seen) continue;
    seen = command;
    const what = command % 4;
    if (what === COMMAND.fill && role === 'filler') fill(machine, p2m, agent, control);
    if (what === COMMAND.look && role === 'looker') look(machine, heap, agent, control, command);
    Atomics.store(control, CONTROL.done + agent - FIRST_AGENT, command);
  }
}

function fill(machine: MachineMemory, p2m: P2m, agent: number, control: Int32Array): void {
  const [root, first, pages, fillers] =
    [CONTROL.root, CONTROL.firstGfn, CONTROL.pages, CONTROL.fillers].map(index => control[index]!) as
      [number, number, number, number];
  for (let page = agent % fillers; page < pages; page += fillers) {
    const mfn = p2m.frameForWrite(root, first + page);
    assert.ok(mfn > 0, 'out of frames');
    machine.u32.fill(0x5ec2_0000 + page % 0x10000, mfn * FRAME_WORDS, (mfn + 1) * FRAME_WORDS);
  }
  p2m.releaseStale();
}

function look(machine: MachineMemory, heap: Heap, agent: number, control: Int32Array, command: number): void {
  const held: number[] = [];
  for (let round = 0; Atomics.load(control, CONTROL.command) === command; round++) {
    // Now and then a frame that will be overwritten, now and then a block.
    const overwritten = round % 7 === 0;
    const order = round % 50 === 0 ? 5 : 0;
    const mfn = heap.allocateBlock(agent, order, overwritten);
    const dropped = mfn === 0 ? held.length : Math.max(0, held.length - HELD_MAX);
    for (const old of held.splice(0, dropped)) heap.release(old);
    if (mfn === 0) continue;
    for (let i = 0; i < 2 ** order; i++) {
      if (!overwritten) lookAt(machine, mfn + i, control);
      machine.u32.fill(0xa11_0000 + agent, (mfn + i) * FRAME_WORDS, (mfn + i + 1) * FRAME_WORDS);
      held.push(mfn + i);
    }
  }
  for (const mfn of held) heap.release(mfn);
}

function lookAt(machine: MachineMemory, mfn: number, control: Int32Array): void {
  Atomics.add(control, CONTROL.looked, 1);
  for (let word = mfn * FRAME_WORDS; word < (mfn + 1) * FRAME_WORDS; word++) {
    const value = machine.u32[word]!;
    if (value === 0) continue;
    Atomics.add(control, CONTROL.found, 1);
    Atomics.store(control, CONTROL.value, value);
    return;
  }
}

if (workerData !== null && 'control' in workerData) runFrameWorker(workerData as FrameTask);
