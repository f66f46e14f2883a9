// What the translator's thread does: collects requests for compilation, and answers all that have come with one module.

import type { MessagePort } from 'node:worker_threads';
import { MACHINE_HEADER } from '../abi/machine-memory.ts';
import type { HotPlace, RegionMessage } from '../cpu/jit/region-parcels.ts';
import { Translator } from '../cpu/jit/translator.ts';
import { MachineMemory } from '../memory/machine-memory.ts';
import { KeptRegions } from './kept-regions.ts';
import { makeRegionModule } from './region-module.ts';
import type { TranslatorOrder, TranslatorWorkerData } from './translator-worker.ts';

const WASM_PAGE_BYTES = 65536;
/** From the first request of a module until it is made. */
const GATHER_MILLIS = 5;
/** When nobody asks: twice as long from one look at what has been decoded to the next, up to this. */
const LOOK_LAST_MILLIS = 640;

/** @param control of the main thread's orders */
export function runTranslator({ memory, ports }: TranslatorWorkerData, control: MessagePort): void {
  const machine = MachineMemory.attach(memory);
  const { addressType, sizeBytes } = machine.parameters;
  const kept = KeptRegions.open(machine);
  let isBooting = false;
  const translator = new Translator(machine, { addressType, minPages: 1, maxPages: sizeBytes / WASM_PAGE_BYTES },
    MACHINE_HEADER.at.pairLock, { makeModule: bytes => makeRegionModule(bytes, isBooting), store: kept?.store });
  let timer: NodeJS.Timeout | undefined;
  let waitMillis = GATHER_MILLIS;
  /** Who has run last: what is found without having been asked for is entered there. */
  let lastToAsk = 0;
  const send = (messageFor: (pcpu: number) => RegionMessage): void => {
    ports.forEach((port, pcpu) => port.postMessage(messageFor(pcpu)));
    Atomics.add(machine.u32, MACHINE_HEADER.at.regionParcels >>> 2, 1);
  };
  const count = (): void => {
    Atomics.store(machine.u32, MACHINE_HEADER.at.compiledRegions >>> 2, translator.regionCount);
    kept?.notice();
  };
  const prepareBoot = (): void => kept?.prepareBoot(regions => {
    const { placed, known } = translator.prepare(regions);
    if (placed.length > 0) {
      const { module, entries } = translator.translate();
      send(pcpu => ({ module, known, entries: entries.get(pcpu) ?? [] }));
    }
    return { placed, entered: known.entered };
  });
  const translate = (): void => {
    timer = undefined;
    const hasMore = translator.look(lastToAsk);
    const { module, entries } = translator.translate();
    if (module !== undefined || entries.size > 0) send(pcpu => ({ module, entries: entries.get(pcpu) ?? [] }));
    if (translator.isFull) {
      const reset = translator.startOver();
      send(() => reset);
    }
    count();
    if (hasMore) waitMillis = GATHER_MILLIS;
    else if (kept === undefined || (waitMillis *= 2) > LOOK_LAST_MILLIS) return;
    timer = setTimeout(translate, waitMillis);
  };
  ports.forEach((port, pcpu) => port.on('message', (places: readonly HotPlace[]) => {
    for (const place of places) translator.request(place, pcpu);
    lastToAsk = pcpu;
    if (timer !== undefined && waitMillis === GATHER_MILLIS) return;
    clearTimeout(timer);
    waitMillis = GATHER_MILLIS;
    // What comes meanwhile goes into the same module: each costs every pCPU's thread as much as 10,000 instructions.
    timer = setTimeout(translate, GATHER_MILLIS);
  }));
  control.on('message', (order: TranslatorOrder) => {
    isBooting = order === 'boot';
    if (isBooting) prepareBoot();
    if (order !== 'close') return;
    kept?.save();
    // It ends this thread alone.
    process.exit();
  });
}
