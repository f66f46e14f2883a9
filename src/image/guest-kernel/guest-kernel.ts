// The kernel of a guest in an image: its log, its processes and where they are, read without the guest and without
// any file but the image. Everything is the guest's word, so it is bounded and checked, and what makes no sense is
// the error ZAZEN_GUEST_KERNEL.

import { Scratch } from '../direct-file.ts';
import type { Image } from '../image.ts';
import { backtraceOfTask, backtraceOfVcpu } from './backtrace.ts';
import type { Frame } from './backtrace.ts';
import type { Btf } from './btf.ts';
import { GuestMemory } from './guest-memory.ts';
import type { GuestPages } from './guest-memory.ts';
import { imagePages } from './image-pages.ts';
import { readKernelLog } from './kernel-log.ts';
import type { LogRecord } from './kernel-log.ts';
import { findTypes } from './kernel-image.ts';
import { readProcesses } from './processes.ts';
import type { GuestProcess } from './processes.ts';
import { KernelSymbols } from './symbols.ts';
import { Vmcoreinfo, guestKernelError } from './vmcoreinfo.ts';

export class GuestKernel {
  readonly info: Vmcoreinfo;
  readonly memory: GuestMemory;
  #types: Btf | undefined;
  #symbols: KernelSymbols | undefined;

  /**
   * @param vmcoreinfo the text of the note
   * @throws ZazenError ZAZEN_GUEST_KERNEL
   */
  constructor(pages: GuestPages, vmcoreinfo: Uint8Array | undefined) {
    if (vmcoreinfo === undefined) {
      throw guestKernelError(pages.path, 'there is no VMCOREINFO in the image',
        'a Linux kernel writes it while it boots');
    }
    const info = Vmcoreinfo.parse(pages.path, vmcoreinfo);
    if (info === undefined) throw guestKernelError(pages.path, 'its VMCOREINFO is none');
    this.info = info;
    this.memory = new GuestMemory(pages, info);
  }

  /** `work` with the kernel of an open image. */
  static async use<T>(image: Image, work: (kernel: GuestKernel) => T): Promise<T> {
    return Scratch.use(async (scratch) => work(new GuestKernel(imagePages(image, scratch), image.vmcoreinfo)));
  }

  log(): LogRecord[] {
    return readKernelLog(this.memory, this.info);
  }

  processes(): GuestProcess[] {
    return readProcesses(this.memory, this.info, this.types);
  }

  get types(): Btf {
    return (this.#types ??= findTypes(this.memory, this.info));
  }

  get symbols(): KernelSymbols {
    return (this.#symbols ??= new KernelSymbols(this.memory, this.info));
  }

  /** Undefined for a vCPU that runs a process's own code. */
  backtraceOfVcpu(vcpu: Image['vcpus'][number]): Frame[] | undefined {
    return backtraceOfVcpu(this.memory, this.symbols, vcpu);
  }

  backtraceOfTask(task: GuestProcess): Frame[] {
    return backtraceOfTask(this.memory, this.symbols, this.types, task);
  }
}
