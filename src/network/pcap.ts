// Capture of a network's frames in the libpcap file format, microseconds, link type Ethernet:
//
//   file   │ magic a1b2c3d4 │ 2 │ 4 │ 0 │ 0 │ snap length │ link type 1 │ record …
//   record │ seconds │ microseconds │ bytes here │ bytes of the frame │ frame …
//
// Little-endian, as the magic number tells readers. Super-frames appear whole, with blank checksums as they went by.

import { createWriteStream } from 'node:fs';
import { finished } from 'node:stream/promises';
import type { WriteStream } from 'node:fs';
import type { Clock } from '../base/clock.ts';
import { ZazenError } from '../base/errors.ts';

const FILE_HEADER_BYTES = 24;
const RECORD_HEADER_BYTES = 16;
const SNAP_BYTES = 65535 + 14;
const LINK_TYPE_ETHERNET = 1;
/** What may wait for a slow disk; frames beyond it are left out and counted. */
const MAX_WAITING_BYTES = 16 << 20;

function pcapFileHeader(): Uint8Array {
  const bytes = new Uint8Array(FILE_HEADER_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, 0xa1b2_c3d4, true);
  view.setUint16(4, 2, true);
  view.setUint16(6, 4, true);
  view.setUint32(16, SNAP_BYTES, true);
  view.setUint32(20, LINK_TYPE_ETHERNET, true);
  return bytes;
}

function pcapRecord(frame: Uint8Array, wallMillis: number): Uint8Array {
  const kept = Math.min(frame.length, SNAP_BYTES);
  const bytes = new Uint8Array(RECORD_HEADER_BYTES + kept);
  const view = new DataView(bytes.buffer);
  const micros = Math.floor(wallMillis * 1000);
  view.setUint32(0, Math.floor(micros / 1e6), true);
  view.setUint32(4, micros % 1e6, true);
  view.setUint32(8, kept, true);
  view.setUint32(12, frame.length, true);
  bytes.set(frame.subarray(0, kept), RECORD_HEADER_BYTES);
  return bytes;
}

export class PcapFile {
  readonly #stream: WriteStream;
  readonly #clock: Clock;
  #left = 0;
  #error: Error | undefined;

  /** Begins a new file at `path`, replacing what is there. */
  static async create(path: string, clock: Clock): Promise<PcapFile> {
    const stream = createWriteStream(path, { mode: 0o600 });
    await new Promise<void>((resolve, reject) => {
      stream.once('open', () => resolve());
      stream.once('error', (cause) => reject(new ZazenError('ZAZEN_CAPTURE_FILE',
        `cannot write the capture ${path}: ${cause.message}`, { hint: 'choose a path that can be written', cause })));
    });
    return new PcapFile(stream, clock);
  }

  private constructor(stream: WriteStream, clock: Clock) {
    this.#stream = stream;
    this.#clock = clock;
    // A full disk ends the capture, not the network.
    stream.on('error', (error) => {
      this.#error = error;
    });
    stream.write(pcapFileHeader());
  }

  /** Frames that are not in the file because the disk was slow or failed. */
  get framesLeftOut(): number {
    return this.#left;
  }

  /** Why the capture ended early, if it did. */
  get error(): Error | undefined {
    return this.#error;
  }

  write(frame: Uint8Array): void {
    if (this.#error !== undefined || this.#stream.writableLength > MAX_WAITING_BYTES) this.#left++;
    else this.#stream.write(pcapRecord(frame, this.#clock.wallMillis()));
  }

  async close(): Promise<void> {
    this.#stream.end();
    if (this.#error === undefined) await finished(this.#stream).catch(() => undefined);
  }
}
