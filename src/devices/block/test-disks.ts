// What the tests of disks share: folders that go when the test ends, and sectors that say what was written to them.

import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { TestContext } from 'node:test';

export const seed = Number(process.env['ZAZEN_TEST_SEED'] ?? 1);

/** Beside the sources: the system's folder for such things may be in memory, where nothing is direct. */
export async function testFolder(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(import.meta.dirname, '.test-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

export async function rawFile(folder: string, sizeBytes: number, name = 'disk.img'): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, new Uint8Array(sizeBytes));
  return path;
}

/** Memory as guests' is: in a page of a Wasm memory. */
export function pageMemory(sizeBytes: number): Uint8Array {
  const pages = Math.ceil(sizeBytes / 65536);
  return new Uint8Array(new WebAssembly.Memory({ initial: pages, maximum: pages }).buffer, 0, sizeBytes);
}

/** Sectors that hold a tag each, 128 times; tag 0 is a sector of zeros. */
export function sectorsOf(tags: readonly number[], into: Uint8Array): Uint8Array {
  const words = new Uint32Array(into.buffer, into.byteOffset, tags.length * 128);
  for (const [i, tag] of tags.entries()) words.fill(tag, i * 128, (i + 1) * 128);
  return into.subarray(0, tags.length * 512);
}

/** The tag of each sector; NaN where a sector is not of one piece. */
export function tagsOf(bytes: Uint8Array): number[] {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  return Array.from({ length: bytes.length / 512 }, (_, i) => {
    const sector = words.subarray(i * 128, (i + 1) * 128);
    return sector.every((word) => word === sector[0]) ? sector[0]! : NaN;
  });
}
