// A pCPU thread's side of compilation: finds hot code, asks for it, and takes in what comes.

import { FIRST_REGION, HANDLER_END_OF_PAGE } from '../../abi/decode-cache.ts';
import { MACHINE_HEADER } from '../../abi/machine-memory.ts';
import { assert } from '../../base/assert.ts';
import type { MachineMemory } from '../../memory/machine-memory.ts';
import { DecodeCache } from '../decode-cache.ts';
import type { HotPlace, RegionMessage } from './region-parcels.ts';

const QUANTUM_MIN = 6_000;
/** How much longer quanta get. */
const QUANTUM_GROWTH = 40;
/** Samples at one place that make it hot; and so many more until it is asked for again, its page having changed. */
const HOT_SAMPLES = 2;
const AGAIN_SAMPLES = 8;
/** Instructions that a region's samples stand for before it is made anew, with calls followed. */
const FOLLOW_CALLS_AFTER = 4_000_000;
const REQUEST_RECORDS = 16;
/** Runs of vCPUs that end before fewer are asked for. */
const RUNS_WAITED_MAX = 4;
/** Places remembered at most: then all are forgotten, as those that are hot come back soon. */
const PLACES_MAX = 1 << 14;

export interface SamplingOptions {
  /** Instructions of the shortest quantum, and of the longest. */
  readonly quantumMin?: number;
  readonly quantumMax?: number;
  readonly hotSamples?: number;
  /** Instructions; 0: calls are followed from the beginning. */
  readonly followCallsAfter?: number;
}

export interface RegionChannel {
  /** Asks for the code at some places; with none, for a look at what has been decoded. */
  readonly request: (places: readonly HotPlace[]) => void;
  /** The next message of the translator's, if one has come. */
  readonly receive: () => RegionMessage | undefined;
}

/**
 * Hot code is found by sampling: a vCPU's time is cut into short quanta, each of which ends at a branch target, and that
 * is where a region may begin. It costs nothing while code runs. Where samples fall into regions, quanta get long.
 */
export class RegionClient {
  /** Instructions until the next sample, at least 1. */
  untilSample = 0;
  #quantum = 0;
  #dice = 1;
  readonly #machine: MachineMemory;
  readonly #decodeCache: DecodeCache;
  readonly #channel: RegionChannel;
  readonly #quantumMin: number;
  readonly #quantumMax: number;
  readonly #hotSamples: number;
  readonly #followCallsAfter: number;
  readonly #samples = new Map<number, number>();
  /** By record at which a region begins: instructions that samples there stand for. */
  readonly #spent = new Map<number, number>();
  #wanted: HotPlace[] = [];
  #runsWaited = 0;
  /** Pages that were decoded when the translator was last asked for something. */
  #slotsSeen = 0;
  #parcelsSeen = 0;

  constructor(machine: MachineMemory, channel: RegionChannel, options: SamplingOptions = {}) {
    const {
      quantumMin = QUANTUM_MIN, quantumMax = quantumMin * QUANTUM_GROWTH, hotSamples = HOT_SAMPLES, followCallsAfter = FOLLOW_CALLS_AFTER,
    } = options;
    this.#quantumMin = quantumMin;
    this.#quantumMax = quantumMax;
    this.#begin(quantumMin);
    this.#hotSamples = hotSamples;
    this.#followCallsAfter = followCallsAfter;
    this.#machine = machine;
    this.#decodeCache = new DecodeCache(machine);
    this.#channel = channel;
  }

  /** Whether the last quantum ended in compiled code. */
  isInRegions = false;

  /**
   * So many instructions have been run. Quanta are not cut short by the ends of runs: a guest that sleeps every few thousand
   * instructions would hardly have samples.
   * @returns whether a quantum has ended: `sample` is next
   */
  passed(instructions: number): boolean {
    const ends = instructions >= this.untilSample;
    if (ends) this.#begin(this.#quantum);
    else this.untilSample -= instructions;
    return ends;
  }
  /** A quantum of about so many instructions: not in step with what the guest does periodically. */
  #begin(instructions: number): void {
    this.#quantum = instructions;
    this.#dice = (Math.imul(this.#dice, 1664525) + 1013904223) >>> 0;
    this.untilSample = Math.ceil(instructions * (1 - this.#dice / 2 ** 35));
  }
  /**
   * A quantum has ended at a record that holds a handler's or region's number.
   * @param neighbours called where the place is asked for
   */
  sample(record: number, handler: number, neighbours: () => Int32Array): void {
    this.isInRegions = handler >= FIRST_REGION;
    if (handler >= FIRST_REGION) {
      this.#weigh(record, this.#quantum, neighbours);
      this.#begin(Math.min(this.#quantumMax, this.#quantum * 2));
      return;
    }
    this.#begin(this.#quantumMin);
    if (handler === HANDLER_END_OF_PAGE) return;
    const samples = (this.#samples.get(record) ?? 0) + 1;
    if (this.#samples.size >= PLACES_MAX) this.#samples.clear();
    this.#samples.set(record, samples);
    if (samples === this.#hotSamples) {
      this.#samples.set(record, -AGAIN_SAMPLES);
      this.#wanted.push({ record, neighbours: neighbours(), followsCalls: this.#followCallsAfter === 0 });
    }
    if (this.#wanted.length >= REQUEST_RECORDS) this.send();
  }

  /** A quantum has ended where a region begins. */
  #weigh(record: number, instructions: number, neighbours: () => Int32Array): void {
    const before = this.#spent.get(record) ?? 0;
    if (this.#spent.size >= PLACES_MAX) this.#spent.clear();
    this.#spent.set(record, before + instructions);
    if (before >= this.#followCallsAfter || before + instructions < this.#followCallsAfter) return;
    this.#wanted.push({ record, neighbours: neighbours(), followsCalls: true });
    if (this.#wanted.length >= REQUEST_RECORDS) this.send();
  }

  /** All decoded code has gone: what stands at a place now is something else. */
  forget(): void {
    this.#samples.clear();
    this.#spent.clear();
    this.#wanted = [];
  }

  /**
   * A run has ended: what was found may wait for a few more, for a message costs as much as thousands of instructions.
   * @param instructions of it that have not been told to `passed`
   */
  endRun(instructions: number): void {
    this.passed(instructions);
    if (this.#wanted.length === 0 && !this.#wantsLook) return;
    if (++this.#runsWaited >= RUNS_WAITED_MAX) this.send();
  }
  /** A page is new, and regions of it may be known from other processes (region-finder.ts). */
  get #wantsLook(): boolean {
    return Atomics.load(this.#machine.u32, MACHINE_HEADER.at.storedRegions >>> 2) > 0
      && this.#decodeCache.slotsInUse !== this.#slotsSeen;
  }
  /** Asks for what has been found. */
  send(): void {
    this.#runsWaited = 0;
    if (this.#wanted.length === 0 && !this.#wantsLook) return;
    this.#slotsSeen = this.#decodeCache.slotsInUse;
    this.#channel.request(this.#wanted);
    this.#wanted = [];
  }

  /** Messages that have come since the last call. */
  *arrived(): Generator<RegionMessage> {
    // Not what is in the queue beyond that: it may not yet be in the queues of the others (region-parcels.ts).
    while (Atomics.load(this.#machine.u32, MACHINE_HEADER.at.regionParcels >>> 2) !== this.#parcelsSeen) {
      this.#parcelsSeen = (this.#parcelsSeen + 1) >>> 0;
      const message = this.#channel.receive();
      assert(message !== undefined, 'a message of the translator was counted before it was sent');
      yield message;
    }
  }
}
