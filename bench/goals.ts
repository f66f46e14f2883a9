// What the project is to reach, as data: where in the results each goal is measured, and its bound. A ratio against
// QEMU or a physical limit is made by the benchmark, of what it measured in one run.

import { programs } from './compute-programs.ts';
import { round } from './statistics.ts';

export interface Goal {
  readonly what: string;
  readonly unit: string;
  /** One of the two. */
  readonly atMost?: number;
  readonly atLeast?: number;
  /** In the results: name of the benchmark, then of the fields. */
  readonly path: string;
}

export interface GoalReport {
  readonly what: string;
  readonly unit: string;
  readonly goal: string;
  /** Missing when the benchmark failed or lacked something, for instance QEMU. */
  readonly measured?: number;
  readonly reached?: boolean;
}

export const goals: readonly Goal[] = [
  { what: 'checkpoint of a busy 128 MiB guest: downtime, median', unit: 'µs', atMost: 250,
    path: 'checkpoint.small.zazen.downtimeMicros.median' },
  { what: 'the same, largest of 100', unit: 'µs', atMost: 1000, path: 'checkpoint.small.zazen.downtimeMicros.max' },
  { what: 'the same, 3 GiB to 128 MiB', unit: '×', atMost: 1.5, path: 'checkpoint.largeToSmall' },
  { what: 'suspend over the event channel, median', unit: 'µs', atMost: 500, path: 'suspend.micros.eventChannel.median' },
  { what: 'suspend of stock Linux over the store, to the event channel', unit: '×', atLeast: 10, path: 'suspend.linuxStoreToEventChannel' },
  { what: 'the same of a guest that answers at once', unit: '×', atLeast: 10, path: 'suspend.storeToEventChannel' },
  { what: 'transparent suspend, to a checkpoint', unit: '×', atMost: 1, path: 'suspend.transparentToCheckpoint' },
  { what: 'emulated access, slowest median', unit: 'ns', atMost: 2000, path: 'emulated-access.worstNanos' },
  { what: 'the same, most pCPUs to one', unit: '×', atMost: 1.1, path: 'emulated-access.worstRatio' },
  { what: 'boot with emulated devices, to paravirtual', unit: '×', atMost: 1.1, path: 'boot.hvm.toParavirtual' },
  { what: 'network: into the guest, to QEMU', unit: '×', atLeast: 1, path: 'net.timesQemu.intoGuest' },
  { what: 'network: out of the guest, to QEMU', unit: '×', atLeast: 1, path: 'net.timesQemu.outOfGuest' },
  { what: 'network: requests answered by the guest, to QEMU', unit: '×', atLeast: 1, path: 'net.timesQemu.requests' },
  { what: 'disk: sequential writes, to QEMU', unit: '×', atLeast: 1, path: 'block.sequentialWrite.ratioToQemu' },
  { what: 'disk: sequential reads, to QEMU', unit: '×', atLeast: 1, path: 'block.sequentialRead.ratioToQemu' },
  { what: 'disk: writes of 4 KiB, to QEMU', unit: '×', atLeast: 1, path: 'block.smallWrite.ratioToQemu' },
  { what: 'disk: reads of 4 KiB, to QEMU', unit: '×', atLeast: 1, path: 'block.smallRead.ratioToQemu' },
  { what: 'restore with four disks, more than with none', unit: 'ms', atMost: 2, path: 'block.attach.restoreExtraMillis' },
  { what: 'save, to a bare O_DIRECT write', unit: '×', atMost: 1.3, path: 'save.timesBareWrite' },
  { what: 'save, times faster than QEMU', unit: '×', atLeast: 3, path: 'save.timesFasterThanQemu.save' },
  { what: 'growth of the page cache by save and dump', unit: 'MiB', atMost: 1, path: 'save.zazen.cacheGrowthMib' },
  { what: 'core dump, times faster than QEMU', unit: '×', atLeast: 8, path: 'save.timesFasterThanQemu.dump' },
  { what: 'restore of 400 MiB to the first instruction', unit: 'ms', atMost: 10,
    path: 'restore.zazen.lazy.firstInstructionMillis.median' },
  { what: 'restore to the first output, times faster than QEMU', unit: '×', atLeast: 20,
    path: 'restore.timesFasterThanQemu.lazy' },
  { what: 'fork, 1000 live and paused, median', unit: 'µs', atMost: 1000, path: 'fork.paused.micros.median' },
  { what: 'memory of a fork', unit: 'KiB', atMost: 256, path: 'fork.paused.kibEach' },
  { what: 'rollback with some 50 dirtied pages, median', unit: 'µs', atMost: 100,
    path: 'rollback.few.totalMicros.median' },
  { what: 'destroy, 64 MiB to 3 GiB, largest median', unit: 'ms', atMost: 1, path: 'destroy.medianMillisMax' },
  { what: 'destroy of 3 GiB to that of 64 MiB', unit: '×', atMost: 1.5, path: 'destroy.largestToSmallest' },
  { what: 'scrubbing, to fill', unit: '×', atLeast: 0.8, path: 'destroy.scrub.scrubToFill' },
  { what: 'p99 of an allocation, scrubbing to idle', unit: '×', atMost: 2, path: 'destroy.allocation.p99Ratio' },
  { what: 'emulated access', unit: 'ns', atMost: 2000, path: 'hypercall.emulatedLoad.nanos.median' },
  { what: 'the same, 4 pCPUs to 1', unit: '×', atMost: 1.1, path: 'hypercall.byPcpus.mostToOne' },
  { what: 'boot of the stock kernel to init, with what a boot before has compiled, to QEMU', unit: '×', atMost: 1, path: 'boot.ratio' },
  { what: 'the same, the first boot ever', unit: '×', atMost: 1, path: 'boot.firstEverRatio' },
  ...programs.map(({ name }) => ({
    what: `compute: ${name}, times faster than QEMU`, unit: '×', atLeast: 1, path: `compute.timesQemu.${name}`,
  })),
  { what: 'v86: the slowest program, times faster', unit: '×', atLeast: 1.5, path: 'v86.slowest' },
  { what: 'v86: geometric mean', unit: '×', atLeast: 1.5, path: 'v86.geometricMean' },
  { what: 'compute: geometric mean', unit: '×', atLeast: 1.3, path: 'compute.geometricMean' },
];

function valueAt(results: unknown, path: string): number | undefined {
  let value: unknown = results;
  for (const name of path.split('.')) {
    if (typeof value !== 'object' || value === null) return undefined;
    value = (value as Record<string, unknown>)[name];
  }
  return typeof value === 'number' && Number.isFinite(value) ? value : undefined;
}

/** Of the benchmarks that `results` has anything of; a value that is missing there is reported as not measured. */
export function judge(results: Readonly<Record<string, unknown>>, wanted: readonly Goal[] = goals): GoalReport[] {
  return wanted.filter(({ path }) => Object.hasOwn(results, path.split('.')[0]!)).map(goal => {
    const { what, unit, atMost, atLeast, path } = goal;
    const bound = atMost === undefined ? `≥ ${atLeast}` : `≤ ${atMost}`;
    const measured = valueAt(results, path);
    if (measured === undefined) return { what, unit, goal: bound };
    return {
      what, unit, goal: bound, measured: round(measured),
      reached: measured <= (atMost ?? Infinity) && measured >= (atLeast ?? -Infinity),
    };
  });
}
