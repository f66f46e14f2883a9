// The host's boot images: kernels and initramfs in frames, shared by the domains that boot from them, and what is known
// of their files, so that a file that has not changed is neither read nor unpacked again.
//
//   path ──stat──► identity ──► digest of the contents, header ──► boot image (p2m tree)  ◄── domains share its nodes
//                  #known                                          #images, in core.caches
//
// An image stays after its last domain, for the next one, and goes when the host is short of memory. What domains share
// of it then remains, as theirs; the next domain gets a new image.

import { createHash } from 'node:crypto';
import { identify, readBootFile } from '../guest/boot-file.ts';
import type { BootFileKind } from '../guest/boot-file.ts';
import { parseKernel } from '../guest/kernel.ts';
import { makeBootImage } from '../lifecycle/boot-image.ts';
import type { BootImage } from '../lifecycle/boot-image.ts';
import type { Heap } from '../memory/heap.ts';
import type { P2m } from '../memory/p2m.ts';
import type { FrameCache, FrameCaches } from './frame-caches.ts';

/** Contents of a file as they go into the guest. */
export interface BootContents {
  /** Names these contents, by their digest, and what they are. */
  readonly key: string;
  readonly sizeBytes: number;
  /** Undefined when the host has them in frames. */
  readonly bytes: Uint8Array | undefined;
}

export interface BootKernel extends BootContents {
  /** Bytes above a 2 MiB boundary, and needed from there on: `Kernel` of guest/kernel.ts. */
  readonly textOffset: number;
  readonly imageSize: number;
}

/** What it needs of HostCore. */
export interface BootImageOwner {
  readonly thread: { readonly p2m: P2m; readonly heap: Heap };
  readonly caches: FrameCaches;
  releaseRoot(root: number): void;
}

const KNOWN_FILES_MAX = 256;

class CachedImage implements FrameCache {
  readonly image: BootImage;
  /** Users who count on it for the moment. Domains do not: they have its nodes. */
  holds = 0;
  readonly #release: () => void;

  constructor(image: BootImage, release: () => void) {
    this.image = image;
    this.#release = release;
  }
  get root(): number {
    return this.image.root;
  }
  get frames(): number {
    return this.image.frames;
  }
  giveUp(): boolean {
    if (this.holds > 0) return false;
    this.#release();
    return true;
  }
}

/** One for a host. */
export class BootImages {
  readonly #core: BootImageOwner;
  readonly #images = new Map<string, CachedImage>();
  /** By what the file is used as and its identity; oldest first. */
  readonly #known = new Map<string, BootContents>();

  constructor(core: BootImageOwner) {
    this.#core = core;
  }

  /** @returns what was remembered of a file */
  recall(identity: string): BootContents | undefined {
    return this.#known.get(identity);
  }
  remember(identity: string, contents: BootContents): void {
    this.#known.set(identity, { ...contents, bytes: undefined });
    if (this.#known.size > KNOWN_FILES_MAX) this.#known.delete(this.#known.keys().next().value!);
  }

  /** @returns the image of these contents, which will not be given up until `holds` is what it was before */
  hold(key: string): CachedImage | undefined {
    const cached = this.#images.get(key);
    if (cached === undefined) return undefined;
    cached.holds++;
    this.#core.caches.touch(cached);
    return cached;
  }

  /** The same, for contents that are put into frames now if they are not yet. @returns undefined when out of frames */
  make({ key, bytes }: BootContents & { readonly bytes: Uint8Array }, offsetBytes: number): CachedImage | undefined {
    const known = this.hold(key);
    if (known !== undefined) return known;
    const { p2m, heap } = this.#core.thread;
    const image = makeBootImage(p2m, heap, bytes, offsetBytes);
    if (image === undefined) return undefined;
    this.#images.set(key, new CachedImage(image, () => {
      this.#images.delete(key);
      this.#core.releaseRoot(image.root);
    }));
    return this.hold(key);
  }
}

/** The files of one domain while it is made: what the host has of them is there until this is disposed of. */
export class BootFiles {
  readonly #images: BootImages | undefined;
  readonly #held = new Map<string, CachedImage>();

  /** @param images left out: every file is read */
  constructor(images?: BootImages) {
    this.#images = images;
  }

  /**
   * @param maxBytes what there is room for
   * @throws ZazenError those of readBootFile and parseKernel
   */
  async kernel(path: string, maxBytes: number): Promise<BootKernel> {
    const identity = await identify(path, 'kernel');
    // What is remembered of a kernel was made below.
    const recalled = this.#recall(`kernel ${identity}`) as BootKernel | undefined;
    if (recalled !== undefined) return recalled;
    const file = await readBootFile(path, 'kernel', maxBytes);
    const { image, textOffset, imageSize } = await parseKernel(file.bytes, path, maxBytes);
    const kernel = { ...contentsOf('kernel', image), textOffset, imageSize };
    if (file.identity !== undefined) this.#images?.remember(`kernel ${file.identity}`, kernel);
    return kernel;
  }

  /**
   * @param maxBytes what there is room for
   * @param overlay an archive to append
   * @throws ZazenError those of readBootFile
   */
  async initramfs(path: string, maxBytes: number, overlay?: Uint8Array): Promise<BootContents> {
    if (overlay !== undefined) {
      const file = await readBootFile(path, 'initramfs', maxBytes);
      return contentsOf('initramfs', append(file.bytes, overlay));
    }
    const recalled = this.#recall(`initramfs ${await identify(path, 'initramfs')}`);
    if (recalled !== undefined) return recalled;
    const file = await readBootFile(path, 'initramfs', maxBytes);
    const initramfs = contentsOf('initramfs', file.bytes);
    if (file.identity !== undefined) this.#images?.remember(`initramfs ${file.identity}`, initramfs);
    return initramfs;
  }

  /** @returns what is known of a file, if its contents are in frames; they are held */
  #recall(identity: string): BootContents | undefined {
    const contents = this.#images?.recall(identity);
    return contents !== undefined && this.#hold(contents.key) ? contents : undefined;
  }

  #hold(key: string): boolean {
    const cached = this.#held.get(key) ?? this.#images?.hold(key);
    if (cached !== undefined) this.#held.set(key, cached);
    return cached !== undefined;
  }

  /**
   * The contents in frames.
   * @param offsetBytes where in 2 MiB they are to start: the same for the same contents
   * @returns undefined when out of frames
   */
  image(contents: BootContents, offsetBytes: number): BootImage | undefined {
    const { key, bytes } = contents;
    const cached = this.#held.get(key) ?? this.#images!.make({ ...contents, bytes: bytes! }, offsetBytes);
    if (cached !== undefined) this.#held.set(key, cached);
    return cached?.image;
  }

  [Symbol.dispose](): void {
    for (const cached of this.#held.values()) cached.holds--;
    this.#held.clear();
  }
}

function contentsOf(kind: BootFileKind, bytes: Uint8Array): BootContents {
  const digest = createHash('sha256').update(bytes).digest('hex');
  return { key: `${kind} ${digest}`, sizeBytes: bytes.length, bytes };
}

/** Linux reads archive after archive, each of which starts at a multiple of four bytes. */
function append(initramfs: Uint8Array, overlay: Uint8Array): Uint8Array {
  const at = Math.ceil(initramfs.length / 4) * 4;
  const joined = new Uint8Array(at + overlay.length);
  joined.set(initramfs);
  joined.set(overlay, at);
  return joined;
}
