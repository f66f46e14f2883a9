// The thread that looks after the rings of disks (lanes/lane.ts), as the host's main thread has it. It is started when
// a ring has first been asked for something, and until it is there, and whenever it is not the right one, the main thread
// does the work itself.

import type { Worker } from 'node:worker_threads';
import type { HostPorts } from '../hypervisor/host-ports.ts';
import { HostLane, LANES_MAX, LaneTable, LaneWatch } from '../lanes/lane.ts';
import type { Lane, LaneEnd } from '../lanes/lane.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import { startWorker } from './worker-thread.ts';

export interface DiskWorkerData {
  readonly memory: WebAssembly.Memory;
  /** Index of the word that the thread sleeps on. */
  readonly doorbell: number;
  readonly lanes: SharedArrayBuffer;
}

export class DiskThread {
  readonly #machine: MachineMemory;
  readonly #ports: HostPorts;
  readonly #table = new LaneTable();
  readonly #lanes = new Map<number, HostLane>();
  #worker: Worker | undefined;
  #isReady = false;
  #isClosed = false;
  readonly #watch = new LaneWatch(this.#table, this.#lanes);

  constructor(machine: MachineMemory, ports: HostPorts) {
    this.#machine = machine;
    this.#ports = ports;
  }

  /** What the threads that serve rings have to know. */
  get lanes(): SharedArrayBuffer {
    return this.#table.buffer;
  }

  /** @returns undefined when there are too many already */
  openLane(end: LaneEnd): Lane | undefined {
    let lane = 0;
    while (this.#lanes.has(lane)) lane++;
    if (lane === LANES_MAX) return undefined;
    this.#table.open(lane, end);
    const route = (to: number | undefined): void => {
      if ('port' in end) this.#ports.route(end.port, to);
      else this.#table.routeSlot(end.domid, end.slot, to);
    };
    const opened = new HostLane(this.#table, lane, {
      canTake: () => this.#canTake(),
      take: () => {
        route(lane);
        this.#ports.ringDiskThread();
      },
      takeBack: () => route(undefined),
      closed: () => this.#lanes.delete(lane),
    });
    this.#lanes.set(lane, opened);
    return opened;
  }

  #canTake(): boolean {
    if (this.#worker === undefined && !this.#isClosed) this.#start();
    return this.#isReady && !this.#watch.isStuck && !this.#isClosed;
  }

  #start(): void {
    const workerData: DiskWorkerData = {
      memory: this.#machine.memory, doorbell: this.#ports.diskDoorbellIndex, lanes: this.lanes,
    };
    const worker = startWorker(new URL('./disk-worker.ts', import.meta.url), { workerData, name: 'disks' });
    this.#worker = worker;
    worker.once('message', () => { this.#isReady = true; });
    // Our bug: what it had under way nobody knows.
    worker.on('error', (error) => { throw error; });
    worker.unref();
  }

  /** From time to time: see LaneWatch. */
  keepHouse(): void {
    this.#watch.look();
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    this.#table.close();
    this.#ports.ringDiskThread();
    await this.#worker?.terminate();
  }
}
