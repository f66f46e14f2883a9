// The processes of the guest: the list of thread group leaders that starts at the kernel's first task (Linux:
// init/init_task.c, include/linux/sched.h). Members are found by name in the kernel's types; the first task itself by
// its name in the kernel's image, at the place that has a task's shape around it.
//
//   init_task ("swapper/0", pid 0) ─ tasks ─► init (pid 1) ─ tasks ─► … ─ tasks ─► back to init_task

import type { Btf, Member } from './btf.ts';
import { viewOf } from './guest-memory.ts';
import type { GuestMemory } from './guest-memory.ts';
import { findInImage } from './kernel-image.ts';
import { guestKernelError } from './vmcoreinfo.ts';
import type { Vmcoreinfo } from './vmcoreinfo.ts';

export interface GuestProcess {
  readonly pid: number;
  /** Of the parent; 0 for those that the kernel started itself. */
  readonly parentPid: number;
  /** The effective one, as `ps` shows it. */
  readonly uid: number;
  /** As in `ps`: R, S, D, T, t, X, Z, P, I. */
  readonly state: string;
  readonly threads: number;
  readonly isKernelThread: boolean;
  /** The vCPU that it runs on or ran on last. */
  readonly cpu: number;
  readonly isOnCpu: boolean;
  /** At most 15 bytes, as Latin-1; anything the process chose. */
  readonly command: string;
  /** Virtual address of its task_struct. */
  readonly task: bigint;
}

/** A list that goes on for longer is no list of processes. */
const PROCESSES_MAX = 2 ** 17;
const COMMAND_OF_FIRST = new TextEncoder().encode('swapper');
const TASK_BYTES_MAX = 65536;
const PF_KTHREAD = 0x20_0000;
/** From bit 0 of the state up (TASK_INTERRUPTIBLE …); no bit is R. */
const STATE_LETTERS = 'SDTtXZP';
const TASK_REPORT = 0x7f;
/** TASK_UNINTERRUPTIBLE with TASK_NOLOAD. */
const TASK_IDLE = 0x402;
const TASK_RTLOCK_WAIT = 0x1000;
const TASK_FROZEN = 0x8000;

function taskMembers(types: Btf) {
  const of = (name: string) => types.member('task_struct', name);
  return {
    next: of('tasks.next'), previous: of('tasks.prev'), pid: of('pid'), command: of('comm'), flags: of('flags'),
    parent: of('real_parent'), credentials: of('cred'), signal: of('signal'), exitState: of('exit_state'),
    cpu: types.tryMember('task_struct', 'thread_info.cpu') ?? of('cpu'), onCpu: of('on_cpu'),
    // Linux 5.14 gave it the underscores.
    state: types.tryMember('task_struct', '__state') ?? of('state'),
    groupId: of('tgid'),
    uid: types.member('cred', 'euid'), threads: types.member('signal_struct', 'nr_threads'),
  };
}

type TaskMembers = ReturnType<typeof taskMembers>;

/** @throws ZazenError ZAZEN_GUEST_KERNEL; as the image's reads */
export function readProcesses(memory: GuestMemory, info: Vmcoreinfo, types: Btf): GuestProcess[] {
  const members = taskMembers(types);
  const sizeBytes = Math.max(...Object.values(members).map((one) => one.offsetBytes + 8));
  if (sizeBytes > TASK_BYTES_MAX) throw guestKernelError(memory.path, 'its tasks have an impossible size');
  const reader = new TaskReader(memory, members, sizeBytes);
  const first = findFirstTask(reader, info);
  const processes: GuestProcess[] = [];
  const seen = new Set([first]);
  for (let task = reader.next(first); task !== first; task = reader.next(task)) {
    if (seen.has(task) || seen.size > PROCESSES_MAX) {
      throw guestKernelError(memory.path, 'its list of tasks has no end');
    }
    seen.add(task);
    processes.push(reader.process(task));
  }
  return processes;
}

function findFirstTask(reader: TaskReader, info: Vmcoreinfo): bigint {
  const { memory, members } = reader;
  for (const address of findInImage(memory, info, COMMAND_OF_FIRST)) {
    const task = memory.imageVirtual(address - members.command.offsetBytes);
    if (reader.isFirst(task)) return task;
  }
  throw guestKernelError(memory.path, 'its first task is nowhere to be found',
    'a kernel that has not yet started has none');
}

class TaskReader {
  readonly memory: GuestMemory;
  readonly members: TaskMembers;
  readonly #sizeBytes: number;

  constructor(memory: GuestMemory, members: TaskMembers, sizeBytes: number) {
    this.memory = memory;
    this.members = members;
    this.#sizeBytes = sizeBytes;
  }

  /** The first task is its own parent, has no number, and the list leads from it and back. */
  isFirst(task: bigint): boolean {
    const bytes = this.memory.tryRead(task, this.#sizeBytes);
    if (bytes === undefined) return false;
    const { next, previous, pid, parent } = this.members;
    if (number(bytes, pid) !== 0 || pointer(bytes, parent) !== task) return false;
    const here = BigInt.asUintN(64, task + BigInt(next.offsetBytes));
    const back = this.memory.tryRead(pointer(bytes, next) + BigInt(previous.offsetBytes - next.offsetBytes), 8);
    return back !== undefined && viewOf(back).getBigUint64(0, true) === here;
  }

  next(task: bigint): bigint {
    const { next } = this.members;
    return BigInt.asUintN(64, this.memory.u64(task + BigInt(next.offsetBytes)) - BigInt(next.offsetBytes));
  }

  process(task: bigint): GuestProcess {
    const { members, memory } = this;
    const bytes = memory.read(task, this.#sizeBytes);
    const parent = memory.tryRead(pointer(bytes, members.parent) + BigInt(members.groupId.offsetBytes), 4);
    const credentials = memory.tryRead(pointer(bytes, members.credentials) + BigInt(members.uid.offsetBytes), 4);
    const signal = memory.tryRead(pointer(bytes, members.signal) + BigInt(members.threads.offsetBytes), 4);
    const command = bytes.subarray(members.command.offsetBytes, members.command.offsetBytes + 16);
    const end = command.indexOf(0);
    return {
      task,
      pid: number(bytes, members.pid),
      parentPid: parent === undefined ? 0 : viewOf(parent).getUint32(0, true),
      uid: credentials === undefined ? 0 : viewOf(credentials).getUint32(0, true),
      threads: signal === undefined ? 1 : viewOf(signal).getUint32(0, true),
      state: stateLetter(number(bytes, members.state), number(bytes, members.exitState)),
      isKernelThread: (number(bytes, members.flags) & PF_KTHREAD) !== 0,
      cpu: number(bytes, members.cpu),
      isOnCpu: number(bytes, members.onCpu) !== 0,
      command: Buffer.from(end < 0 ? command : command.subarray(0, end)).toString('latin1'),
    };
  }
}

/** As the kernel tells it in /proc/PID/stat. */
function stateLetter(state: number, exitState: number): string {
  if ((state & TASK_IDLE) === TASK_IDLE) return 'I';
  const isBlocked = (state & (TASK_RTLOCK_WAIT | TASK_FROZEN)) !== 0;
  const bits = isBlocked ? 2 : (state | exitState) & TASK_REPORT;
  return bits === 0 ? 'R' : STATE_LETTERS[31 - Math.clz32(bits)]!;
}

function number(bytes: Uint8Array, { offsetBytes }: Member): number {
  return viewOf(bytes).getUint32(offsetBytes, true);
}

function pointer(bytes: Uint8Array, { offsetBytes }: Member): bigint {
  return viewOf(bytes).getBigUint64(offsetBytes, true);
}
