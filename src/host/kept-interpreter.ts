// The interpreter of a machine, compiled: by whoever had a machine of this layout before in this process, from the cache
// folder, or made here and kept there. Making it takes the main thread as long as reading half of all code; what makes it is read
// then only, the instruction table with it, which takes a third of what reading all the rest does.
//
// What is kept is trusted as far as compiled regions are, with which it lies (region-folder.ts).

import { createHash } from 'node:crypto';
import { regionStoreFolder } from '../base/cache-folder.ts';
import { interpreterLayout } from '../cpu/handlers.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import { emitterVersion } from './emitter-version.ts';
import { RegionFolder } from './region-folder.ts';

const WASM_PAGE_BYTES = 65536;

/** The last one, with what V8 has optimised of it: hosts of one process are mostly alike. */
let last: { readonly name: string; readonly module: Promise<WebAssembly.Module> } | undefined;

export async function interpreterFor(machine: MachineMemory): Promise<WebAssembly.Module> {
  const { addressType, sizeBytes } = machine.parameters;
  const memory = { addressType, minPages: 1, maxPages: sizeBytes / WASM_PAGE_BYTES };
  const layout = interpreterLayout(machine);
  const name = createHash('sha256').update(JSON.stringify([memory, layout])).digest('hex');
  if (last?.name !== name) {
    const build = async () => (await import('../cpu/interpreter.ts')).buildInterpreter(memory, layout);
    last = { name, module: bytesOf(addressType, name, build).then(bytes => WebAssembly.compile(bytes)) };
  }
  return last.module;
}

type Bytes = Uint8Array<ArrayBuffer>;
async function bytesOf(addressType: 'i32' | 'i64', name: string, build: () => Promise<Bytes>): Promise<Bytes> {
  const path = regionStoreFolder();
  const version = path === undefined ? undefined : emitterVersion(addressType);
  const folder = version && RegionFolder.open(path!, version);
  return folder === undefined ? build() : folder.file(name, build);
}
