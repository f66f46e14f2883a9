// Zazen's own notes: the header, state sections, the page map, the page checksums, and which pages are stored twice.
//
// A reader refuses types that it does not know, unless their top bit says that it may overlook them.

import { assert } from '../base/assert.ts';
import { decodeVcpus } from './elf.ts';
import type { Note } from './elf.ts';
import {
  HEADER_BYTES_MAX, HOT_PAGES_MAX, SECTIONS_MAX, SECTION_BYTES_MAX, VCPUS_MAX, VMCOREINFO_BYTES_MAX,
} from './format.ts';
import type { ImageHeader, ParentReference, StateSection, VcpuRegisters } from './format.ts';
import { PageMap } from './page-map.ts';

export const ZAZEN_NOTE = {
  name: 'Zazen',
  /** 'ZZ' and a number: readers of core files take small types for Linux's whatever the name says. */
  type: { header: 0x5a5a0001, section: 0x5a5a0002, pageMap: 0x5a5a0003, checksums: 0x5a5a0004, hotPages: 0x5a5a0005 },
  /** Types from here on may be overlooked. */
  optional: 0x80000000,
} as const;

const SECTION_NAME = /^[a-z0-9][a-z0-9._/-]{0,63}$/;
const SECTION_NAME_BYTES = 64;
export const NOTES_MAX = SECTIONS_MAX + 2 * VCPUS_MAX + 64;
/** A section that is longer stays in the area that was read, which then lasts as long as the section. */
const COPIED_BYTES_MAX = 2 ** 18;
const NOTE_OVERHEAD_BYTES = 192; // header, names, padding

/** No image with this many pages has more bytes of notes. */
export function notesBytesMax(pageCount: number): number {
  return HEADER_BYTES_MAX + SECTION_BYTES_MAX + VMCOREINFO_BYTES_MAX + VCPUS_MAX * 1024
    + NOTES_MAX * NOTE_OVERHEAD_BYTES + PageMap.sizeBytes(pageCount) + 8 * pageCount + 4 * HOT_PAGES_MAX;
}

/** The name, padded to 64 bytes with zeros, then the bytes. */
export function encodeSection({ name, bytes }: StateSection): Uint8Array {
  assert(SECTION_NAME.test(name), 'a state section has a name that the format does not allow');
  const out = new Uint8Array(SECTION_NAME_BYTES + bytes.length);
  out.set(new TextEncoder().encode(name));
  out.set(bytes, SECTION_NAME_BYTES);
  return out;
}

function decodeSection(bytes: Uint8Array): StateSection | undefined {
  if (bytes.length < SECTION_NAME_BYTES) return undefined;
  const name = new TextDecoder('latin1').decode(bytes.subarray(0, SECTION_NAME_BYTES)).replace(/\0+$/, '');
  if (!SECTION_NAME.test(name)) return undefined;
  const content = bytes.subarray(SECTION_NAME_BYTES);
  return { name, bytes: content.length > COPIED_BYTES_MAX ? content : content.slice() };
}

export interface NotesContent {
  readonly header: ImageHeader;
  readonly vcpus: readonly VcpuRegisters[];
  readonly vmcoreinfo: Uint8Array | undefined;
  readonly sections: Map<string, Uint8Array>;
  readonly pageMap: Uint8Array;
  /** Two words for each stored page, low first. */
  readonly checksums: Uint32Array;
  /** GFNs of the pages that are stored twice, in the order of the second copies. */
  readonly hotGfns: Uint32Array;
}

/** @returns what the notes say, or what is wrong with them */
export function decodeContent(notes: readonly Note[], pageCount: number, hotPages: number): NotesContent | { fault: string } {
  const vcpus = decodeVcpus(notes);
  if (vcpus === undefined || vcpus.length > VCPUS_MAX) return { fault: 'its registers of vCPUs are malformed' };
  const { type } = ZAZEN_NOTE;
  const own = notes.filter(({ name }) => name === ZAZEN_NOTE.name);
  const known: readonly number[] = Object.values(type);
  const unknown = own.find((note) => note.type < ZAZEN_NOTE.optional && !known.includes(note.type));
  if (unknown !== undefined) return { fault: `it has a note of the unknown type ${unknown.type}` };
  const only = (wanted: number): Uint8Array | undefined => {
    const found = own.filter((note) => note.type === wanted);
    return found.length === 1 ? found[0]!.bytes : undefined;
  };
  const header = decodeHeader(only(type.header));
  if (header === undefined) return { fault: 'its header is malformed' };
  const sections = new Map<string, Uint8Array>();
  for (const { bytes } of own.filter((note) => note.type === type.section)) {
    const section = decodeSection(bytes);
    if (section === undefined || sections.has(section.name)) return { fault: 'a state section is malformed' };
    sections.set(section.name, section.bytes);
  }
  const pageMap = only(type.pageMap);
  if (pageMap?.length !== PageMap.sizeBytes(pageCount)) return { fault: 'its page map is malformed' };
  const checksums = only(type.checksums);
  if (checksums === undefined || checksums.length % 8 !== 0) return { fault: 'its page checksums are malformed' };
  const hotGfns = own.some((note) => note.type === type.hotPages) ? only(type.hotPages) : new Uint8Array(0);
  if (hotGfns?.length !== 4 * hotPages) return { fault: 'its list of hot pages is malformed' };
  return {
    header, vcpus, sections,
    vmcoreinfo: notes.find(({ name }) => name === 'VMCOREINFO')?.bytes.slice(),
    pageMap: pageMap.slice(),
    checksums: new Uint32Array(checksums.slice().buffer),
    hotGfns: new Uint32Array(hotGfns.slice().buffer),
  };
}

const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
const isId = (value: unknown): value is string => typeof value === 'string' && /^[0-9a-f-]{36}$/.test(value);

function decodeHeader(bytes: Uint8Array | undefined): ImageHeader | undefined {
  if (bytes === undefined || bytes.length > HEADER_BYTES_MAX) return undefined;
  let header: unknown;
  try {
    header = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch {
    return undefined;
  }
  if (!isRecord(header)) return undefined;
  const { id, createdMillis, parent, domain } = header;
  if (!isId(id) || typeof createdMillis !== 'number' || !isRecord(domain)) return undefined;
  if (parent !== undefined && !isParent(parent)) return undefined;
  return header as unknown as ImageHeader;
}

function isParent(value: unknown): value is ParentReference {
  if (!isRecord(value)) return false;
  const { path, id, digest } = value;
  return typeof path === 'string' && path.length > 0 && path.length <= 4096 && !path.includes('\0')
    && isId(id) && typeof digest === 'string' && /^[0-9a-f]{16}$/.test(digest);
}
