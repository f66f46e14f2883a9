// `zazen image dmesg|ps|backtrace`: look at the guest in an image, without any host and without debug symbols: the
// kernel's log, its processes, and where it was. All of it is the guest's word, which does not reach a terminal as it
// is.

import { ZazenError } from '../base/errors.ts';
import type { Frame } from '../image/guest-kernel/backtrace.ts';
import { GuestKernel } from '../image/guest-kernel/guest-kernel.ts';
import { formatLog } from '../image/guest-kernel/kernel-log.ts';
import type { GuestProcess } from '../image/guest-kernel/processes.ts';
import { openImage } from '../image/image.ts';
import type { Image } from '../image/image.ts';
import type { Arguments } from './arguments.ts';
import { harmless } from './image.ts';
import type { Io } from './io.ts';
import { formatColumns } from './table.ts';
import { JSON_OPTION, printJson } from './verb.ts';
import type { Verb } from './verb.ts';

const FILE = { name: 'FILE' };

const imageDmesgVerb: Verb = {
  name: 'image dmesg',
  summary: "Show the log of the guest's kernel from an image.",
  positionals: [FILE],
  options: { json: JSON_OPTION },
  run: showLog,
};

const imagePsVerb: Verb = {
  name: 'image ps',
  summary: 'Show the processes of the guest in an image.',
  positionals: [FILE],
  options: { json: JSON_OPTION },
  run: showProcesses,
};

const imageBacktraceVerb: Verb = {
  name: 'image backtrace',
  summary: "Show where in the guest's kernel each vCPU of an image was, or a process that waits.",
  positionals: [FILE],
  options: { pid: { value: 'PID', help: 'of this process instead of the vCPUs' }, json: JSON_OPTION },
  run: showBacktrace,
};

export const imageGuestVerbs: readonly Verb[] = [imageDmesgVerb, imagePsVerb, imageBacktraceVerb];

/** With the image's parents: what is asked for may lie in any of them. */
async function withKernel<T>(path: string, work: (kernel: GuestKernel, image: Image) => T): Promise<T> {
  await using image = await openImage(path);
  // Awaited, so that the image stays open until then.
  return await GuestKernel.use(image, (kernel) => work(kernel, image));
}

async function showLog({ positionals, switches }: Arguments, io: Io): Promise<number> {
  const records = await withKernel(positionals[0]!, (kernel) => kernel.log());
  if (switches.has('json')) {
    printJson(io, records.map(({ sequence, timeNanos, level, facility, text }) =>
      ({ sequence: Number(sequence), timeSeconds: Number(timeNanos) / 1e9, level, facility, text })));
  } else {
    // Lines and columns are meant.
    const shown = (text: string) => text.split(/([\n\t])/).map((part, i) => (i % 2 === 1 ? part : harmless(part))).join('');
    io.stdout.write(formatLog(records.map((record) => ({ ...record, text: shown(record.text) }))));
  }
  return 0;
}

async function showProcesses({ positionals, switches }: Arguments, io: Io): Promise<number> {
  const processes = await withKernel(positionals[0]!, (kernel) => kernel.processes());
  if (switches.has('json')) printJson(io, processes.map((one) => ({ ...one, task: hex(one.task) })));
  else io.stdout.write(describeProcesses(processes));
  return 0;
}

/** As `ps` does: kernel threads in brackets, + for one that runs. */
function describeProcesses(processes: readonly GuestProcess[]): string {
  return formatColumns(['PID', 'PPID', 'UID', 'STATE', 'VCPU', 'THREADS', 'COMMAND'], processes.map((one) => [
    String(one.pid), String(one.parentPid), String(one.uid), `${one.state}${one.isOnCpu ? '+' : ''}`, String(one.cpu),
    String(one.threads), one.isKernelThread ? `[${harmless(one.command)}]` : harmless(one.command),
  ]), new Set([0, 1, 2, 4, 5]));
}

interface Trace {
  readonly title: string;
  /** Undefined where a process's own code runs. */
  readonly frames: readonly Frame[] | undefined;
}

async function showBacktrace({ positionals, values, switches }: Arguments, io: Io): Promise<number> {
  const { pid } = values;
  const traces = await withKernel(positionals[0]!, (kernel, image): Trace[] => (pid === undefined
    ? image.vcpus.map((vcpu, n) => ({ title: `vcpu ${n}`, frames: kernel.backtraceOfVcpu(vcpu) }))
    : [traceProcess(kernel, image, pid)]));
  if (switches.has('json')) {
    const frame = ({ pc, place }: Frame) => ({ pc: hex(pc), function: place?.name, offsetBytes: place?.offsetBytes });
    printJson(io, traces.map(({ title, frames }) => ({ title, frames: frames?.map(frame) })));
  } else io.stdout.write(traces.map(describeTrace).join(''));
  return 0;
}

function traceProcess(kernel: GuestKernel, image: Image, pid: string): Trace {
  const process = kernel.processes().find((one) => String(one.pid) === pid);
  if (process === undefined) {
    throw new ZazenError('ZAZEN_GUEST_PROCESS', `image ${image.path}: the guest has no process ${pid}`,
      { hint: 'see: zazen image ps' });
  }
  const vcpu = process.isOnCpu ? image.vcpus[process.cpu] : undefined;
  return {
    title: `process ${pid}, ${harmless(process.command)}`,
    frames: vcpu === undefined ? kernel.backtraceOfTask(process) : kernel.backtraceOfVcpu(vcpu),
  };
}

function describeTrace({ title, frames }: Trace): string {
  const lines = frames?.map(({ pc, place }) =>
    `  ${hex(pc)}  ${place === undefined ? '?' : `${harmless(place.name)}+0x${place.offsetBytes.toString(16)}`}`);
  return `${title}\n${(lines ?? ['  runs code of a process']).join('\n')}\n`;
}

const hex = (value: bigint) => `0x${value.toString(16).padStart(16, '0')}`;
