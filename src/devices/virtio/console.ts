// The console device (OASIS Virtual I/O Device 1.2, 5.3), one port: bytes both ways, for a console back end that serves
// any pair of byte queues. Output stays in the driver's buffers until somebody takes it, so a slow reader holds the
// guest up and costs the host nothing.

import { VIRTIO_ID } from '../../abi/emulated-devices.ts';
import type { Chain, VirtQueue } from './queue.ts';
import type { VirtioModel, VirtioSlot } from './slot.ts';

const RECEIVE_QUEUE = 0;
const TRANSMIT_QUEUE = 1;
/** Taken at a time; a longer buffer is taken in pieces. */
const OUTPUT_BYTES = 16384;
const INPUT_BYTES = 4096;
/** Empty ones count, too. */
const BUFFERS_PER_TURN = 256;

export class VirtioConsole implements VirtioModel {
  readonly deviceId = VIRTIO_ID.console;
  readonly queueCount = 2;
  readonly features = [];
  /** What drivers do wrong breaks the device, not an index. */
  readonly badIndices = 0;
  readonly #service: () => void;
  #slot: VirtioSlot | undefined;
  /** The buffer that output is being taken from, and how many bytes of it have been. */
  #output: { readonly chain: Chain; takenBytes: number } | undefined;
  /** Input that is on its way, since a page could not be had. */
  #input: { readonly chain: Chain; readonly bytes: Uint8Array } | undefined;

  /** @param service calls the back end, which then asks for what there is */
  constructor(service: () => void) {
    this.#service = service;
  }

  config(): Uint8Array {
    return new Uint8Array(0);
  }
  serve(slot: VirtioSlot): void {
    this.#slot = slot;
    if (this.#input !== undefined) this.#finishInput();
    this.#service();
  }
  restarted(slot: VirtioSlot): void {
    this.#slot = slot;
    this.#output = undefined;
    this.#input = undefined;
  }

  // ---- for the back end

  hasOutput(): boolean {
    return this.#output !== undefined || (this.#queue(TRANSMIT_QUEUE)?.hasNext ?? false);
  }

  takeOutput(): Buffer {
    const queue = this.#queue(TRANSMIT_QUEUE);
    if (queue === undefined) return Buffer.alloc(0);
    const pieces: Uint8Array[] = [];
    let sizeBytes = 0;
    for (let count = 0; sizeBytes < OUTPUT_BYTES && count < BUFFERS_PER_TURN; count++) {
      const chain = this.#output?.chain ?? queue.take();
      if (chain === undefined) break;
      this.#output ??= { chain, takenBytes: 0 };
      const rest = chain.readableBytes - this.#output.takenBytes;
      const piece = queue.read(chain, this.#output.takenBytes, Math.min(rest, OUTPUT_BYTES - sizeBytes));
      if (piece === undefined) {
        // A broken driver's buffer is gone.
        if (this.#slot!.isBroken) this.#output = undefined;
        break;
      }
      pieces.push(piece);
      sizeBytes += piece.length;
      this.#output.takenBytes += piece.length;
      if (this.#output.takenBytes < chain.readableBytes) continue;
      if (!queue.complete(chain)) break;
      this.#output = undefined;
    }
    return Buffer.concat(pieces);
  }

  putInput(bytes: Uint8Array): number {
    const queue = this.#queue(RECEIVE_QUEUE);
    if (bytes.length === 0 || this.#input !== undefined) return 0;
    const chain = queue?.take();
    if (chain === undefined) return 0;
    const count = Math.min(bytes.length, chain.writableBytes, INPUT_BYTES);
    this.#input = { chain, bytes: bytes.slice(0, count) };
    this.#finishInput();
    return count;
  }

  #finishInput(): void {
    const { chain, bytes } = this.#input!;
    if (this.#queue(RECEIVE_QUEUE)!.complete(chain, bytes)) this.#input = undefined;
  }

  #queue(index: number): VirtQueue | undefined {
    return this.#slot?.queues[index];
  }
}
