// What the translator's thread does: collects requests for compilation, and answers all that have come with one module.

import { setFlagsFromString } from 'node:v8';
import { MACHINE_HEADER } from '../abi/machine-memory.ts';
import type { RegionMessage } from '../cpu/jit/region-parcels.ts';
import { Translator } from '../cpu/jit/translator.ts';
import { MachineMemory } from '../memory/machine-memory.ts';
import type { TranslatorWorkerData } from './translator-worker.ts';

const WASM_PAGE_BYTES = 65536;
/** From the first request of a module until it is made. */
const GATHER_MILLIS = 5;

/**
 * V8 compiles a function when it is first called: by the pCPU's thread, while the guest waits. Not so what this thread
 * makes. The option belongs to the whole process, so it is changed for no longer than the call takes.
 */
function makeModule(bytes: Uint8Array<ArrayBuffer>): WebAssembly.Module {
  setFlagsFromString('--no-wasm-lazy-compilation');
  try {
    return new WebAssembly.Module(bytes);
  } finally {
    setFlagsFromString('--wasm-lazy-compilation');
  }
}

export function runTranslator({ memory, ports }: TranslatorWorkerData): void {
  const machine = MachineMemory.attach(memory);
  const { addressType, sizeBytes } = machine.parameters;
  const translator = new Translator(
    machine, { addressType, minPages: 1, maxPages: sizeBytes / WASM_PAGE_BYTES }, MACHINE_HEADER.at.pairLock, { makeModule });
  let isScheduled = false;
  const send = (messageFor: (pcpu: number) => RegionMessage): void => {
    ports.forEach((port, pcpu) => port.postMessage(messageFor(pcpu)));
    Atomics.add(machine.u32, MACHINE_HEADER.at.regionParcels >>> 2, 1);
  };
  const count = (): void => {
    Atomics.store(machine.u32, MACHINE_HEADER.at.compiledRegions >>> 2, translator.regionCount);
  };
  const translate = (): void => {
    isScheduled = false;
    const { module, entries } = translator.translate();
    send(pcpu => ({ module, entries: entries.get(pcpu) ?? [] }));
    count();
    if (!translator.isFull) return;
    const reset = translator.startOver();
    send(() => reset);
    count();
  };
  ports.forEach((port, pcpu) => port.on('message', (records: readonly number[]) => {
    for (const record of records) translator.request(record, pcpu);
    if (isScheduled) return;
    isScheduled = true;
    // What comes meanwhile goes into the same module: each costs every pCPU's thread as much as 10,000 instructions.
    setTimeout(translate, GATHER_MILLIS);
  }));
}
