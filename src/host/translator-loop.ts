// What the translator's thread does: collects requests for compilation, and answers all that have come with one module.

import { MACHINE_HEADER } from '../abi/machine-memory.ts';
import type { RegionMessage } from '../cpu/jit/region-parcels.ts';
import { Translator } from '../cpu/jit/translator.ts';
import { MachineMemory } from '../memory/machine-memory.ts';
import type { TranslatorWorkerData } from './translator-worker.ts';

const WASM_PAGE_BYTES = 65536;

export function runTranslator({ memory, ports }: TranslatorWorkerData): void {
  const machine = MachineMemory.attach(memory);
  const { addressType, sizeBytes } = machine.parameters;
  const translator = new Translator(
    machine, { addressType, minPages: 1, maxPages: sizeBytes / WASM_PAGE_BYTES }, MACHINE_HEADER.at.pairLock);
  let isScheduled = false;
  const send = (messageFor: (pcpu: number) => RegionMessage): void => {
    ports.forEach((port, pcpu) => port.postMessage(messageFor(pcpu)));
    Atomics.add(machine.u32, MACHINE_HEADER.at.regionParcels >>> 2, 1);
  };
  const translate = (): void => {
    isScheduled = false;
    const { module, entries } = translator.translate();
    send(pcpu => ({ module, entries: entries.get(pcpu) ?? [] }));
    if (!translator.isFull) return;
    const reset = translator.startOver();
    send(() => reset);
  };
  ports.forEach((port, pcpu) => port.on('message', (records: readonly number[]) => {
    for (const record of records) translator.request(record, pcpu);
    if (isScheduled) return;
    isScheduled = true;
    // What came meanwhile goes into the same module.
    setImmediate(translate);
  }));
}
