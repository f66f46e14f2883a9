// Save, dump and restore of a running 400 MiB guest against QEMU: the same kernel, initramfs and workload, which prints
// a counter all the time. Restore is measured to the first line that the guest prints afterwards; what is checked: the
// counter goes on from where it was saved. Page cache growth is what the kernel says of the whole machine.

import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { assert } from '../src/base/assert.ts';
import { Host } from '../src/host/index.ts';
import { prepareGuest } from '../src/guest/initramfs.ts';
import { QemuProcess } from './peers/qemu-monitor.ts';
import { findQemu, qemuMissing } from './peers/qemu.ts';
import type { Benchmark } from './run.ts';
import { round, summarize } from './statistics.ts';

const RUNS = 7;
const MEMORY_MIB = 400;
const COMMAND = 'i=0; while :; do i=$((i+1)); echo tick-$i-; usleep 5000; done';
const MARK = 'tick-100-';

const timed = async (work: () => Promise<unknown>): Promise<number> => {
  const start = performance.now();
  await work();
  return performance.now() - start;
};
/** Of the last whole line. */
const counterIn = (text: string): number => Number(/.*tick-(\d+)-/s.exec(text)?.[1] ?? Number.NaN);
const cachedMib = (): number => Number(/^Cached:\s+(\d+)/m.exec(readFileSync('/proc/meminfo', 'utf8'))![1]) / 1024;

async function measureZazen(folder: string) {
  const path = join(folder, 'zazen.core');
  await using host = await Host.start();
  const domain = await host.create({ exec: COMMAND, memory: `${MEMORY_MIB}MiB`, cmdline: 'quiet', name: 'bench' });
  let text = '';
  domain.exec!.output.setEncoding('utf8').on('data', (chunk: string) => { text += chunk; });
  while (!text.includes(MARK)) await new Promise(resolve => setTimeout(resolve, 1));
  const samples = { save: [] as number[], dump: [] as number[], restore: [] as number[], firstOutput: [] as number[] };
  const cachedBefore = cachedMib();
  let bytesWritten = 0;
  for (let run = 0; run < RUNS; run++) {
    const { bytesWritten: bytes, direct } = await (async () => {
      const start = performance.now();
      const stats = await domain.save(path);
      samples.save.push(performance.now() - start);
      return stats;
    })();
    assert(direct, 'the page cache was used');
    bytesWritten = bytes;
    const savedAt = counterIn(text);
    const start = performance.now();
    const restored = await host.restore(path, { name: `restored-${run}` });
    samples.restore.push(performance.now() - start);
    const stream = restored.attachConsole();
    let tail = '';
    await new Promise<void>(resolve => stream.setEncoding('utf8').on('data', (chunk: string) => {
      tail += chunk;
      // The console begins with what it had shown before; only a counter beyond that is news.
      if (counterIn(tail) > savedAt + 1) resolve();
    }));
    samples.firstOutput.push(performance.now() - start);
    assert(counterIn(tail) < savedAt + 50, 'the counter has jumped');
    stream.destroy();
    await restored.destroy();
    samples.dump.push(await timed(() => domain.dumpCore(path)));
  }
  return { samples, bytesWritten, cacheGrowthMib: cachedMib() - cachedBefore };
}

async function measureQemu(qemu: string, folder: string, guest: { kernelPath: string; initramfsPath: string }) {
  const setup = { ...guest, memoryMib: MEMORY_MIB, cmdline: `quiet zazen.exec=${Buffer.from(COMMAND).toString('base64')}` };
  const path = join(folder, 'qemu.state');
  const samples = { save: [] as number[], dump: [] as number[], firstOutput: [] as number[] };
  for (let run = 0; run < Math.ceil(RUNS / 2); run++) {
    const source = await QemuProcess.start(qemu, setup, folder);
    await source.until(MARK);
    samples.dump.push(await timed(() => source.dump(join(folder, 'qemu.core'))));
    samples.save.push(await timed(() => source.save(path)));
    await source.end();
    const start = performance.now();
    const target = await QemuProcess.start(qemu, setup, folder, path);
    await target.resume();
    await target.until('tick-');
    samples.firstOutput.push(performance.now() - start);
    await target.end();
  }
  return { samples, savedBytes: statSync(path).size };
}

const summaries = (samples: Record<string, number[]>) =>
  Object.fromEntries(Object.entries(samples).map(([name, values]) => [`${name}Millis`, summarize(values)]));

const benchmark: Benchmark = {
  name: 'save',
  description: `save, dump and restore of a running ${MEMORY_MIB} MiB guest, against QEMU TCG`,
  async run({ log }) {
    const guest = await prepareGuest({ log });
    // Beside the project: temporary folders may lie in memory.
    const folder = mkdtempSync(join(process.cwd(), '.cache-bench-'));
    try {
      const zazen = await measureZazen(folder);
      const result = { zazen: { ...summaries(zazen.samples), bytesWritten: zazen.bytesWritten, cacheGrowthMib: round(zazen.cacheGrowthMib) } };
      const qemu = findQemu();
      if (qemu === undefined) {
        log(qemuMissing);
        return { ...result, qemu: qemuMissing };
      }
      const peer = await measureQemu(qemu, folder, guest);
      const ratio = (name: 'save' | 'dump' | 'firstOutput'): number =>
        round(summarize(peer.samples[name]).median / summarize(zazen.samples[name]).median);
      return {
        ...result, qemu: { ...summaries(peer.samples), savedBytes: peer.savedBytes },
        timesFasterThanQemu: { save: ratio('save'), dump: ratio('dump'), restoreToFirstOutput: ratio('firstOutput') },
      };
    } finally {
      rmSync(folder, { recursive: true });
    }
  },
};
export default benchmark;
