// Save: a frozen domain into an image, which is its core dump as well.

import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { vcpuRecord } from '../abi/vcpu.ts';
import { pstate } from '../cpu/exceptions.ts';
import { VcpuState } from '../cpu/vcpu-state.ts';
import { writeImage } from '../image/writer.ts';
import type { ImageWritten, LaterContent } from '../image/writer.ts';
import type { ParentImage } from '../image/parent-image.ts';
import type { PageRun, WriteProgress } from '../image/page-writer.ts';
import { BANKS_MAX, imageError } from '../image/format.ts';
import type { Bank, JsonValue, VcpuRegisters } from '../image/format.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import { mappedStretches, p2mRanges } from '../memory/p2m-ranges.ts';
import type { FrozenDomain } from './checkpoint.ts';
import { stateSections } from './image-state.ts';
import { findVmcoreinfo } from './vmcoreinfo.ts';

export interface SaveRequest {
  readonly path: string;
  readonly frozen: FrozenDomain;
  /** Told by `zazen image info`. */
  readonly domain: { readonly [key: string]: JsonValue };
  /** Sections beside the domain's own state, and what to store twice; asked for while pages are being written. */
  readonly later: () => Promise<Pick<LaterContent, 'sections' | 'hotPages'>>;
  /** An incremental image, which leaves unchanged pages to this one. */
  readonly parent?: ParentImage | undefined;
  /** Root of a tree that still is what was saved as the parent: then nothing but what differs from it is looked at. */
  readonly parentRoot?: number | undefined;
  readonly onProgress?: ((progress: WriteProgress) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * The frozen memory must stay until this is over.
 * @throws ZazenError as `writeImage`
 */
export function saveFrozen(machine: MachineMemory, request: SaveRequest): Promise<ImageWritten> {
  const { path, frozen, domain, later, parent, parentRoot, onProgress, signal } = request;
  const banks = banksOf(path, machine, frozen.root);
  return writeImage({
    path, machine, domain, onProgress, signal, parent: parent?.reference, parentPages: parent,
    banks,
    pages: pageRuns(machine, frozen.root, parentRoot),
    vcpus: frozen.state.vcpus.map(({ registers }) => registersOf(registers)),
    sections: [],
    // In turns of a millisecond or two, lest the disk run out of requests.
    later: async () => {
      const notes = findVmcoreinfo(machine, frozen, banks);
      await new Promise(setImmediate);
      const { sections, ...others } = await later();
      return { ...notes, ...others, sections: [...stateSections(frozen.state), ...sections] };
    },
  });
}

/** Where the guest has memory: RAM, and the pages that it shares with the hypervisor. */
function banksOf(path: string, machine: MachineMemory, root: number): Bank[] {
  const banks = mappedStretches(machine, root)
    .map(({ gfn, count }) => ({ guestAddress: gfn * FRAME_BYTES, sizeBytes: count * FRAME_BYTES }));
  if (banks.length > BANKS_MAX) {
    throw imageError('CREATE', path, `cannot hold a guest whose memory lies in ${banks.length} pieces`,
      { hint: `an image holds at most ${BANKS_MAX}` });
  }
  return banks;
}

function* pageRuns(machine: MachineMemory, root: number, parentRoot: number | undefined): Generator<PageRun> {
  for (const { gfn, count, mfn, isInBase } of p2mRanges(machine, root, parentRoot)) {
    if (mfn !== 0) yield { gfn, count, mfn: isInBase ? 'parent' : mfn };
  }
}

/** For debuggers. The vCPU is out of emitted code, so `pcBase` is its PC. */
function registersOf(saved: Uint8Array): VcpuRegisters {
  const bytes = saved.slice().buffer;
  const u64 = new BigUint64Array(bytes);
  const vcpu = new VcpuState({ u32: new Uint32Array(bytes), u64 }, 0);
  const { at } = vcpuRecord;
  return {
    x: u64.subarray(at.x / 8, at.x / 8 + 31),
    sp: vcpu.x(31), pc: vcpu.get64(at.pcBase), pstate: BigInt(pstate(vcpu)),
    fp: { v: new Uint8Array(bytes, at.v, 512), fpsr: vcpu.get32(at.fpsr), fpcr: vcpu.get32(at.fpcr) },
  };
}
