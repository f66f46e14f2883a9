// Records of a domain's state as another version of the host has laid them out. An image says of each record where its
// fields are (section "domain/layout"); a host with other records takes each field by its name:
//
//   record of the image              record of this host
//   ├─ lock          ──────────────► ├─ lock
//   ├─ consoleLog    ──────────────► ├─ consoleLog
//   │                          0 ──► ├─ emulated        what the image does not have is zero
//   ├─ portFrames[64] ─────────────► ├─ portFrames[96]  elements in turn, zero behind them
//   └─ gone          must be zero    └─ …               what this host does not have, or has no room for, must be zero
//
// A field that is to mean the same must keep its name, and zero must mean "as before there was such a field". Where that
// cannot be, the state's version is raised and image-state.ts says what is made of older ones.

import { CONSOLE_LOG, DOMAIN, PORT, VCPU_ENTRY } from '../abi/domain-record.ts';
import { EMULATED } from '../abi/emulated-devices.ts';
import { GIC_DOMAIN, GIC_VCPU } from '../abi/gic.ts';
import type { FieldType, Struct } from '../abi/struct.ts';
import { vcpuRecord } from '../abi/vcpu.ts';

/** Offset, bytes of an element, number of elements, and what an element is made of if it is a record itself. */
export type FieldLayout = readonly [at: number, elementBytes: number, count: number, element?: RecordLayout];
export interface RecordLayout {
  readonly bytes: number;
  readonly fields: Readonly<Record<string, FieldLayout>>;
}

const records = {
  domain: DOMAIN, port: PORT, consoleLog: CONSOLE_LOG, emulated: EMULATED,
  vcpu: vcpuRecord, vcpuEntry: VCPU_ENTRY, gicDomain: GIC_DOMAIN, gicVcpu: GIC_VCPU,
} as const;
export type RecordName = keyof typeof records;
export type StateLayout = Readonly<Record<RecordName, RecordLayout>>;

function recordLayout({ sizeBytes, at, fields }: Struct): RecordLayout {
  const fieldLayout = (name: string): FieldLayout => {
    const { type, count } = elementsOf(fields[name]!);
    const place = [at[name]!, type.sizeBytes, count] as const;
    return type.fields === undefined ? place : [...place, recordLayout(type as Struct)];
  };
  return { bytes: sizeBytes, fields: Object.fromEntries(Object.keys(fields).map((name) => [name, fieldLayout(name)])) };
}
const elementsOf = (type: FieldType): { type: FieldType; count: number } => type.elements ?? { type, count: 1 };

/** Of this host. */
export const ownLayout = Object.fromEntries(
  Object.entries(records).map(([name, record]) => [name, recordLayout(record)])) as StateLayout;
export const ownLayoutText: Uint8Array = Buffer.from(JSON.stringify(ownLayout));

const RECORD_BYTES_MAX = 2 ** 16;
const FIELDS_MAX = 512;
const DEPTH_MAX = 4;

/** @returns undefined for bytes that are no layout; else every field lies within its record */
export function parseLayout(bytes: Uint8Array): StateLayout | undefined {
  let layout: Partial<StateLayout> | null;
  try {
    layout = JSON.parse(Buffer.from(bytes).toString()) as Partial<StateLayout> | null;
  } catch {
    return undefined;
  }
  const isRight = typeof layout === 'object' && layout !== null
    && (Object.keys(records) as RecordName[]).every((name) =>
      isRecordLayout(Object.hasOwn(layout, name) ? layout[name] : undefined));
  return isRight ? layout as StateLayout : undefined;
}

function isRecordLayout(layout: unknown, depth = 0): boolean {
  const { bytes, fields } = (layout ?? {}) as Partial<RecordLayout>;
  if (!isCount(bytes) || bytes > RECORD_BYTES_MAX || typeof fields !== 'object' || fields === null) return false;
  const places = Object.values(fields) as unknown[];
  return depth < DEPTH_MAX && places.length <= FIELDS_MAX && places.every((place) => {
    if (!Array.isArray(place) || !place.slice(0, 3).every(isCount) || place.length < 3) return false;
    const [at, elementBytes, count, element] = place as [number, number, number, unknown];
    return at + elementBytes * count <= bytes && elementBytes > 0
      && (element === undefined
        || isRecordLayout(element, depth + 1) && (element as RecordLayout).bytes === elementBytes);
  });
}
const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;

/** The image has something that this host has no place for. */
export class UnknownField extends Error {}

/**
 * @param bytes a record, or several in a row, as `from` has them
 * @throws UnknownField, with the field's name as its message
 */
export function translate(bytes: Uint8Array, from: RecordLayout, to: RecordLayout): Uint8Array {
  const count = bytes.length / from.bytes;
  const translated = new Uint8Array(count * to.bytes);
  for (let i = 0; i < count; i++) {
    translateRecord(bytes.subarray(i * from.bytes, (i + 1) * from.bytes), from, translated.subarray(i * to.bytes), to);
  }
  return translated;
}

function translateRecord(bytes: Uint8Array, from: RecordLayout, into: Uint8Array, to: RecordLayout): void {
  for (const [name, [at, size, count, record]] of Object.entries(from.fields)) {
    const [ownAt, ownSize, ownCount, ownRecord] = Object.hasOwn(to.fields, name) ? to.fields[name]! : NOWHERE;
    const isSameKind = (record === undefined) === (ownRecord === undefined);
    for (let i = 0; i < count; i++) {
      const element = bytes.subarray(at + i * size, at + (i + 1) * size);
      const own = into.subarray(ownAt + i * ownSize, ownAt + (i + 1) * ownSize);
      const isKept = i < ownCount && isSameKind;
      if (isKept && record !== undefined && ownRecord !== undefined) translateRecord(element, record, own, ownRecord);
      else {
        // Numbers are little-endian: a longer one begins as a shorter one does.
        const kept = isKept ? Math.min(size, ownSize) : 0;
        own.set(element.subarray(0, kept));
        if (element.subarray(kept).some((byte) => byte !== 0)) throw new UnknownField(name);
      }
    }
  }
}
const NOWHERE: FieldLayout = [0, 0, 0];

/** Where this host has what lies at an offset of a record, in a field or in an element of one; undefined: nowhere. */
export function translateOffset(offset: number, from: RecordLayout, to: RecordLayout): number | undefined {
  for (const [name, [at, size, count]] of Object.entries(from.fields)) {
    if (offset < at || offset >= at + size * count || !Object.hasOwn(to.fields, name)) continue;
    const [ownAt, ownSize, ownCount] = to.fields[name]!;
    const index = Math.floor((offset - at) / size);
    return index < ownCount ? ownAt + index * ownSize + (offset - at) % size : undefined;
  }
  return undefined;
}
