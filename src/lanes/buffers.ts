// Page-aligned memory for requests that cannot go straight from and to guest frames: taken for one request, then given
// back. It comes from Wasm memories, the one kind of buffer whose alignment JavaScript can rely on; each takes gigabytes
// of address space, so that they are large, few, and kept. What was never used in them costs nothing.
//
//   arena   │ 64 KiB │ 64 KiB │ …  256 grains; a buffer is some grains side by side

import { assert } from '../base/assert.ts';

const GRAIN_BYTES = 65536;
const ARENA_GRAINS = 256;

export interface Buffer extends Disposable {
  /** Page-aligned; contents are whatever was there. */
  readonly bytes: Uint8Array;
}

class Arena {
  readonly #bytes: Uint8Array;
  readonly #isTaken = new Uint8Array(ARENA_GRAINS);

  constructor() {
    const memory = new WebAssembly.Memory({ initial: ARENA_GRAINS, maximum: ARENA_GRAINS });
    this.#bytes = new Uint8Array(memory.buffer);
  }

  take(sizeBytes: number): Buffer | undefined {
    const grains = Math.ceil(sizeBytes / GRAIN_BYTES);
    let run = 0;
    for (let grain = 0; grain < ARENA_GRAINS; grain++) {
      run = this.#isTaken[grain] === 0 ? run + 1 : 0;
      if (run < grains) continue;
      const first = grain + 1 - grains;
      this.#isTaken.fill(1, first, grain + 1);
      return {
        bytes: this.#bytes.subarray(first * GRAIN_BYTES, first * GRAIN_BYTES + sizeBytes),
        [Symbol.dispose]: () => { this.#isTaken.fill(0, first, first + grains); },
      };
    }
    return undefined;
  }
}

const arenas: Arena[] = [];

/** To be disposed of when the request is over. @param sizeBytes at most 16 MiB */
export function takeBuffer(sizeBytes: number): Buffer {
  assert(sizeBytes > 0 && sizeBytes <= ARENA_GRAINS * GRAIN_BYTES, 'a buffer fits into an arena');
  for (const arena of arenas) {
    const buffer = arena.take(sizeBytes);
    if (buffer !== undefined) return buffer;
  }
  const arena = new Arena();
  arenas.push(arena);
  return arena.take(sizeBytes)!;
}
