// Small guests and machine memories for tests of the image room.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after } from 'node:test';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { SeededRandom } from '../base/random.ts';
import type { PageMemory } from './checksum.ts';
import type { Bank, VcpuRegisters } from './format.ts';
import type { Image } from './image.ts';
import type { PageRun } from './page-writer.ts';
import type { WriteImageRequest } from './writer.ts';

/** A folder that is gone after the tests of the file. */
export function makeFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'zazen-image-'));
  after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

export function makeMachine(sizeBytes: number, addressType: 'i32' | 'i64' = 'i32'): PageMemory {
  const pages = Math.ceil(sizeBytes / 65536);
  const memory = addressType === 'i32' ? new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true })
    : new WebAssembly.Memory({ initial: BigInt(pages), maximum: BigInt(pages), shared: true, address: 'i64' });
  const u8 = new Uint8Array(memory.buffer);
  return { memory, u8, parameters: { addressType, sizeBytes: u8.length } };
}

export const frameOf = ({ u8 }: PageMemory, mfn: number): Uint8Array =>
  u8.subarray(mfn * FRAME_BYTES, (mfn + 1) * FRAME_BYTES);

export function fillFrame(machine: PageMemory, mfn: number, seed: number): void {
  const random = new SeededRandom(seed);
  const words = new Uint32Array(machine.u8.buffer, mfn * FRAME_BYTES, FRAME_BYTES / 4);
  for (let i = 0; i < words.length; i++) words[i] = random.u32();
}

export function makeVcpu(seed: number, withFp = false): VcpuRegisters {
  const random = new SeededRandom(seed);
  const v = Uint8Array.from({ length: 512 }, () => random.below(256));
  return {
    x: Array.from({ length: 31 }, () => random.u64()), sp: random.u64(), pc: random.u64() & ~3n, pstate: 0x3c5n,
    ...(withFp ? { fp: { v, fpsr: random.u32(), fpcr: 0 } } : {}),
  };
}

export const BASE = 0x4000_0000;
export const BASE_GFN = BASE / FRAME_BYTES;
export const bankOf = (pages: number, gfn = BASE_GFN): Bank =>
  ({ guestAddress: gfn * FRAME_BYTES, sizeBytes: pages * FRAME_BYTES });

type Defaults = 'machine' | 'path' | 'banks' | 'pages';

/** A request with everything that the test does not care for. */
export function makeRequest(
  given: Pick<WriteImageRequest, Defaults> & Partial<WriteImageRequest>,
): WriteImageRequest {
  return { domain: { name: 'test' }, vcpus: [], sections: [], ...given };
}

/** One page each of `mfns`, from the guest's first page on; undefined is a zero page. */
export function runsOf(mfns: readonly (number | 'parent' | undefined)[], gfn = BASE_GFN): PageRun[] {
  return mfns.flatMap((mfn, k) => mfn === undefined ? [] : [{ gfn: gfn + k, count: 1, mfn }]);
}

/** Contents of guest pages, read through the image into the machine's frames from `mfn` on. */
export async function readBack(
  image: Image, machine: PageMemory, mfn: number, gfn: number, count: number,
): Promise<Buffer> {
  machine.u8.fill(0xee, mfn * FRAME_BYTES, (mfn + count) * FRAME_BYTES);
  await image.readPages(machine, gfn, Uint32Array.from({ length: count }, (_, k) => mfn + k));
  return Buffer.from(machine.u8.slice(mfn * FRAME_BYTES, (mfn + count) * FRAME_BYTES));
}
