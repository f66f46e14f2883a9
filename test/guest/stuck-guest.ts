// What a guest that does not get on is doing, for the message of the test that waited for it: its vCPUs and the processes
// that wait, with their calls, and the end of the kernel's log, read from a dump as `zazen image` reads them.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Domain } from '../../src/host/index.ts';
import { openImage } from '../../src/image/image.ts';
import type { Image } from '../../src/image/image.ts';
import type { Frame } from '../../src/image/guest-kernel/backtrace.ts';
import { GuestKernel } from '../../src/image/guest-kernel/guest-kernel.ts';
import { formatLog } from '../../src/image/guest-kernel/kernel-log.ts';

const LOG_TAIL_CHARACTERS = 2000;

/** Never fails: what cannot be had is said in its place. The domain is as before, apart from the pause that a dump takes. */
export async function describeStuck(domain: Domain): Promise<string> {
  const directory = mkdtempSync(join(tmpdir(), 'zazen-stuck-'));
  try {
    const info = JSON.stringify(domain.stats());
    const path = join(directory, 'core');
    await domain.dumpCore(path);
    await using image = await openImage(path);
    return `${info}\n${await GuestKernel.use(image, (kernel) => describeKernel(kernel, image))}`;
  } catch (error) {
    return `(no more about it: ${(error as Error).message})`;
  } finally {
    rmSync(directory, { recursive: true });
  }
}

function describeKernel(kernel: GuestKernel, image: Image): string {
  const vcpus = image.vcpus.map((vcpu, n) => `vcpu ${n}: pc ${vcpu.pc.toString(16)}: ${calls(() => kernel.backtraceOfVcpu(vcpu))}`);
  const processes = kernel.processes().filter((each) => !each.isKernelThread || each.state !== 'I')
    .map((each) => `${each.pid} ${each.command} ${each.state}: ${calls(() => kernel.backtraceOfTask(each))}`);
  return [...vcpus, ...processes, formatLog(kernel.log()).slice(-LOG_TAIL_CHARACTERS)].join('\n');
}

function calls(trace: () => readonly Frame[] | undefined): string {
  try {
    const frames = trace();
    return frames === undefined ? "a process's own code" : frames.map(({ place, pc }) => place?.name ?? pc.toString(16)).join(' < ');
  } catch (error) {
    return `? (${(error as Error).message})`;
  }
}
