// What threads of this process got of the cores, and how long they waited for one: tells whether a long sample is ours or
// the operating system's. From Linux's /proc/self/task/TID/schedstat: nanoseconds on a core, nanoseconds waiting for one.

import { openSync, readFileSync, readSync, readdirSync } from 'node:fs';

export interface CoreUse {
  /** Of the main thread and of the pCPU that waited longest, for a core. */
  readonly mainWaitedMicros: number;
  readonly pcpuWaitedMicros: number;
  /** On a core, of all other threads of the process: V8's, the translator's, libuv's. */
  readonly othersRanMicros: number;
}

const NANOS_PER_MICRO = 1000;

export class RunDelays {
  readonly #threads: { readonly name: string; readonly file: number }[];
  readonly #buffer = Buffer.alloc(128);
  #before: readonly (readonly [number, number])[];

  /** Of the threads that there are now. Where there is nothing to be read, all is 0. */
  constructor() {
    try {
      this.#threads = readdirSync('/proc/self/task').map(tid => ({
        name: readFileSync(`/proc/self/task/${tid}/comm`, 'latin1').trim(),
        file: openSync(`/proc/self/task/${tid}/schedstat`, 'r'),
      }));
    } catch {
      this.#threads = [];
    }
    this.#before = this.#read();
  }

  #read(): (readonly [number, number])[] {
    return this.#threads.map(({ file }) => {
      const length = readSync(file, this.#buffer, 0, this.#buffer.length, 0);
      const [ran, waited] = this.#buffer.toString('latin1', 0, length).split(' ');
      return [Number(ran), Number(waited)];
    });
  }

  /** What comes is counted from here. */
  begin(): void {
    this.#before = this.#read();
  }
  end(): CoreUse {
    const now = this.#read();
    const most = (isOne: (name: string) => boolean): number => Math.max(0, ...this.#threads.map(({ name }, i) =>
      isOne(name) ? now[i]![1] - this.#before[i]![1] : 0));
    const isMain = (name: string): boolean => /main/i.test(name);
    const isPcpu = (name: string): boolean => name.startsWith('pcpu');
    const ran = this.#threads.map(({ name }, i) => isMain(name) || isPcpu(name) ? 0 : now[i]![0] - this.#before[i]![0]);
    return {
      mainWaitedMicros: most(isMain) / NANOS_PER_MICRO,
      pcpuWaitedMicros: most(isPcpu) / NANOS_PER_MICRO,
      othersRanMicros: ran.reduce((sum, one) => sum + one, 0) / NANOS_PER_MICRO,
    };
  }
}
