// Opens one image file and takes in all but its pages. Everything read is hostile until it is checked: sizes against
// the limits of the format and the length of the file, areas against their digests, then each note for itself.
//
// What it takes to open a usual image is at its two ends, which are read side by side: the notes of a guest of 400 MiB
// are a quarter of a megabyte. How long they are is in the head; where they are longer, they are read after it.

import { constants } from 'node:fs';
import type { BigIntStats } from 'node:fs';
import { BLOCK_BYTES, IMAGE_VERSION, alignToBlock, imageError, layoutImage } from './format.ts';
import type { Bank, ImageLayout, KernelWindow } from './format.ts';
import { EMPTY_DIGEST, formatDigest } from './checksum.ts';
import type { Digest } from './checksum.ts';
import { DirectFile, Scratch } from './direct-file.ts';
import type { FileSystem } from './direct-file.ts';
import { decodeBanks, decodeNotes, decodeSuperblock } from './elf.ts';
import type { Superblock } from './elf.ts';
import { HotArea } from './hot-area.ts';
import { NOTES_MAX, decodeContent, notesBytesMax } from './notes.ts';
import type { NotesContent } from './notes.ts';
import { PageMap } from './page-map.ts';

/** Of the end of a file, read before it is known how much of it the notes are. */
const TAIL_BYTES = 384 * 1024;
/** In the scratch memory: the head's block, then the tail. */
const TAIL_BLOCK = 1;

export interface ImageFile {
  readonly path: string;
  readonly file: DirectFile;
  readonly version: number;
  readonly fileBytes: number;
  /** Of the head, and so of the whole contents. */
  readonly digest: string;
  readonly banks: readonly Bank[];
  readonly kernelWindow?: KernelWindow | undefined;
  readonly layout: ImageLayout;
  readonly content: NotesContent;
  readonly map: PageMap;
  readonly hotArea: HotArea;
  /** As it was before anything was read. */
  readonly status: BigIntStats;
}

/** Called when the head of a file is known, and nothing else of it: the hot pages may be read meanwhile, while the file is open. */
export type AtHead = (hotArea: HotArea) => void;

/** @throws ZazenError ZAZEN_IMAGE_OPEN, _FORMAT, _VERSION, _TRUNCATED, _CHECKSUM, _READ */
export async function openImageFile(path: string, files: FileSystem, atHead?: AtHead): Promise<ImageFile> {
  const file = await DirectFile.open(files, path, constants.O_RDONLY).catch((cause: NodeJS.ErrnoException) => {
    throw imageError('OPEN', path, `cannot be opened (${cause.code})`, { cause });
  });
  try {
    const status = await file.handle.stat({ bigint: true });
    if (!status.isFile()) throw imageError('FORMAT', path, 'is not a file');
    const areas = await Scratch.use((scratch) => readAreas(path, file, Number(status.size), scratch, atHead));
    return { ...areas, path, file, status };
  } catch (error) {
    await file.close();
    throw error;
  }
}

/** Head and notes of a file, checked; also to find out whether they are still what they were. */
export async function readAreas(path: string, file: DirectFile, sizeBytes: number, scratch: Scratch, atHead?: AtHead) {
  const tail = readTail(file, sizeBytes, scratch);
  // Then the scratch memory is somebody else's.
  return takeAreas(path, file, sizeBytes, scratch, tail, atHead).finally(() => tail);
}

async function takeAreas(
  path: string, file: DirectFile, sizeBytes: number, scratch: Scratch, tail: Promise<Uint8Array>, atHead?: AtHead,
) {
  const { superblock, banks, hotPages, kernelWindow, digest } = await readHead(path, file, scratch);
  const { version, fileBytes } = superblock;
  const layout = layoutImage(banks, hotPages);
  const hotArea = new HotArea(path, file, layout.hotOffset, hotPages);
  if (superblock.notesBytes > notesBytesMax(layout.pageCount)
    || fileBytes !== layout.notesOffset + alignToBlock(superblock.notesBytes)) {
    throw imageError('FORMAT', path, 'its head contradicts itself');
  }
  if (sizeBytes < fileBytes) {
    throw imageError('TRUNCATED', path, `is cut short: ${sizeBytes} bytes of ${fileBytes}`, { hint: 'copy it again' });
  }
  if (sizeBytes > fileBytes) throw imageError('FORMAT', path, `has ${sizeBytes - fileBytes} bytes too many at its end`);
  atHead?.(hotArea);
  const area = await readNotes(path, file, layout, superblock, scratch, await tail);
  const notes = decodeNotes(area, NOTES_MAX);
  const content = notes === undefined ? { fault: 'its notes are malformed' }
    : decodeContent(notes, layout.pageCount, hotPages);
  if ('fault' in content) throw imageError('FORMAT', path, content.fault);
  const map = new PageMap(banks, content.pageMap);
  if (!map.isWellFormed() || map.rank(map.pageCount) * 2 !== content.checksums.length) {
    throw imageError('FORMAT', path, 'its page map is malformed');
  }
  const { hotGfns } = content;
  if (new Set(hotGfns).size < hotGfns.length || hotGfns.some((gfn) => map.state(gfn) !== 'stored')) {
    throw imageError('FORMAT', path, 'its list of hot pages is malformed');
  }
  return { version, fileBytes, digest: formatDigest(digest), banks, kernelWindow, layout, content, map, hotArea };
}

const readError = (path: string, what: string) => (cause: NodeJS.ErrnoException): never => {
  throw imageError('READ', path, `${what} cannot be read (${cause.code})`, { cause });
};

const altered = (path: string, what: string) =>
  imageError('CHECKSUM', path, `${what} is not what was written`, { hint: 'the file was altered, or its disk fails' });

/** @returns the last blocks of the file, or none: what cannot be read is read again, and told, when it is needed */
async function readTail(file: DirectFile, sizeBytes: number, scratch: Scratch): Promise<Uint8Array> {
  const end = Math.floor(sizeBytes / BLOCK_BYTES);
  const blocks = Math.min(TAIL_BYTES / BLOCK_BYTES, end);
  const tail = scratch.blocks(TAIL_BLOCK, blocks);
  const bytesRead = blocks === 0 ? 0 : await file.read([tail], (end - blocks) * BLOCK_BYTES).catch(() => 0);
  return tail.subarray(0, bytesRead === tail.length ? tail.length : 0);
}

async function readHead(path: string, file: DirectFile, scratch: Scratch): Promise<{
  superblock: Superblock; banks: readonly Bank[]; hotPages: number; kernelWindow?: KernelWindow | undefined; digest: Digest;
}> {
  const shared = scratch.blocks(0, 1);
  const bytesRead = await file.read([shared], 0).catch(readError(path, 'its head'));
  const block = shared.slice();
  const superblock = bytesRead < BLOCK_BYTES ? undefined : decodeSuperblock(block);
  if (superblock === undefined) throw imageError('FORMAT', path, 'is not a Zazen image');
  const { version, headDigest } = superblock;
  if (version > IMAGE_VERSION) {
    throw imageError('VERSION', path, `has format version ${version}, newer than ${IMAGE_VERSION}`,
      { hint: 'use the Zazen that wrote it, or a later one' });
  }
  setDigestToZero(shared);
  const digest = scratch.hasher.digest(0, 1);
  if (digest.low !== headDigest.low || digest.high !== headDigest.high) throw altered(path, 'its head');
  if (version < 1) throw imageError('FORMAT', path, 'has no format version');
  const { banks, hotPages, kernelWindow, fault } = decodeBanks(block, superblock);
  if (fault !== undefined) throw imageError('FORMAT', path, fault);
  return { superblock, banks, hotPages, kernelWindow, digest };
}

/** The head's own digest, the last eight bytes of it, was zero when it was taken. */
function setDigestToZero(block: Uint8Array): void {
  block.fill(0, BLOCK_BYTES - 8);
}

/** @param tail the last blocks of the file */
async function readNotes(
  path: string, file: DirectFile, { notesOffset }: ImageLayout, superblock: Superblock, scratch: Scratch, tail: Uint8Array,
): Promise<Uint8Array> {
  const { notesBytes, notesDigest } = superblock;
  const area = new Uint8Array(notesBytes);
  const areaBytes = alignToBlock(notesBytes);
  let digest = EMPTY_DIGEST;
  const take = (firstBlock: number, blocks: number, at: number): void => {
    digest = scratch.hasher.digest(firstBlock, blocks, digest);
    area.set(scratch.blocks(firstBlock, blocks).subarray(0, notesBytes - at), at);
  };
  if (areaBytes <= tail.length) {
    const blocks = areaBytes / BLOCK_BYTES;
    take(TAIL_BLOCK + tail.length / BLOCK_BYTES - blocks, blocks, 0);
  } else {
    for (let at = 0; at < areaBytes; at += Scratch.sizeBytes) {
      const blocks = Math.min(Scratch.sizeBytes, areaBytes - at) / BLOCK_BYTES;
      const bytesRead = await file.read([scratch.blocks(0, blocks)], notesOffset + at).catch(readError(path, 'its notes'));
      if (bytesRead < blocks * BLOCK_BYTES) throw imageError('TRUNCATED', path, 'is cut short in its notes');
      take(0, blocks, at);
    }
  }
  if (digest.low !== notesDigest.low || digest.high !== notesDigest.high) throw altered(path, 'its description');
  return area;
}
