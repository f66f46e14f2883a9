// The thread that looks after the rings of disks (devices/block/lane.ts), as the host's main thread has it. It is started when
// a ring has first been asked for something, and until it is there, and whenever it is not the right one, the main thread
// does the work itself.

import { MessageChannel } from 'node:worker_threads';
import type { MessagePort, Worker } from 'node:worker_threads';
import { HostLane, LANES_MAX, LaneTable, LaneWatch } from '../devices/block/lane.ts';
import type { Lane, Loan } from '../devices/block/lane.ts';
import type { HostPorts } from '../hypervisor/host-ports.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import { startWorker } from './worker-thread.ts';

export interface DiskWorkerData {
  readonly memory: WebAssembly.Memory;
  /** Index of the word that the thread sleeps on. */
  readonly doorbell: number;
  readonly lanes: SharedArrayBuffer;
  /** Loans come in; null ends the thread. */
  readonly port: MessagePort;
}

export interface PostedLoan {
  readonly lane: number;
  readonly number: number;
  readonly loan: Loan;
  readonly domid: number;
  /** Of the host's, for events to the guest. */
  readonly port: number;
}

export class DiskThread {
  readonly #machine: MachineMemory;
  readonly #ports: HostPorts;
  readonly #table = new LaneTable();
  readonly #lanes = new Map<number, HostLane>();
  #worker: Worker | undefined;
  #port: MessagePort | undefined;
  #isReady = false;
  #isClosed = false;
  readonly #watch = new LaneWatch(this.#table, this.#lanes);
  #isStuck = false;

  constructor(machine: MachineMemory, ports: HostPorts) {
    this.#machine = machine;
    this.#ports = ports;
  }

  /** @returns undefined when there are too many already */
  openLane(domid: number, port: number): Lane | undefined {
    let lane = 0;
    while (this.#lanes.has(lane)) lane++;
    if (lane === LANES_MAX) return undefined;
    this.#table.clearCounters(lane);
    const opened = new HostLane(this.#table, lane, {
      canTake: () => this.#canTake(),
      take: (loan, number) => this.#take({ lane, number, loan, domid, port }),
      takeBack: () => this.#ports.route(port, 'main'),
      closed: () => this.#lanes.delete(lane),
    });
    this.#lanes.set(lane, opened);
    return opened;
  }

  #canTake(): boolean {
    if (this.#worker === undefined && !this.#isClosed) this.#start();
    return this.#isReady && !this.#isStuck && !this.#isClosed;
  }

  #start(): void {
    const { port1, port2 } = new MessageChannel();
    const workerData: DiskWorkerData = {
      memory: this.#machine.memory, doorbell: this.#ports.diskDoorbellIndex, lanes: this.#table.buffer, port: port2,
    };
    const worker = startWorker(new URL('./disk-worker.ts', import.meta.url), { workerData, name: 'disks', transferList: [port2] });
    this.#worker = worker;
    this.#port = port1;
    worker.once('message', () => { this.#isReady = true; });
    // Our bug: what it had under way nobody knows.
    worker.on('error', (error) => { throw error; });
    worker.unref();
    port1.unref();
  }

  #take(loan: PostedLoan): void {
    this.#ports.route(loan.port, 'diskThread');
    this.#port!.postMessage(loan);
    this.#ports.ringDiskThread();
  }

  /** From time to time: see LaneWatch. */
  keepHouse(): void {
    this.#isStuck = this.#watch.look();
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    this.#port?.postMessage(null);
    this.#ports.ringDiskThread();
    await this.#worker?.terminate();
  }
}
