// Records as data: a struct names its fields once, and TypeScript and emitted code both take the offsets from it.
// Fields are laid out in order with natural alignment, as the C ABI of AArch64 does, so Xen's public structures can be
// written down field by field; sizes are asserted where a header states them.

import { assert } from '../base/assert.ts';

export interface FieldType {
  readonly sizeBytes: number;
  readonly alignBytes: number;
  /** Of an array. */
  readonly elements?: { readonly type: FieldType; readonly count: number };
  /** Of a struct. */
  readonly fields?: Readonly<Record<string, FieldType>>;
}

export interface Struct<K extends string = string> extends FieldType {
  readonly name: string;
  /** Byte offset of each field from the start of the record. */
  readonly at: Readonly<Record<K, number>>;
  readonly fields: Readonly<Record<K, FieldType>>;
}

const scalar = (sizeBytes: number): FieldType => ({ sizeBytes, alignBytes: sizeBytes });
export const u8 = scalar(1);
export const u16 = scalar(2);
export const u32 = scalar(4);
export const u64 = scalar(8);
/** A 128-bit vector register; aligned so that one access never crosses a cache line. */
export const u128 = scalar(16);

export function array(element: FieldType, count: number): FieldType {
  return { sizeBytes: element.sizeBytes * count, alignBytes: element.alignBytes, elements: { type: element, count } };
}

const alignUp = (value: number, align: number) => Math.ceil(value / align) * align;

/** @param sizeBytes asserted against the computed size, or a larger size to pad the record to. */
export function struct<F extends Record<string, FieldType>>(
  name: string, fields: F, options: { sizeBytes?: number; padTo?: number } = {},
): Struct<keyof F & string> {
  const at: Record<string, number> = {};
  let end = 0;
  let alignBytes = 1;
  for (const [field, type] of Object.entries(fields)) {
    at[field] = alignUp(end, type.alignBytes);
    end = at[field] + type.sizeBytes;
    alignBytes = Math.max(alignBytes, type.alignBytes);
  }
  let size = alignUp(end, alignBytes);
  if (options.padTo !== undefined) {
    assert(size <= options.padTo, 'struct is larger than the place kept for it');
    size = options.padTo;
  }
  if (options.sizeBytes !== undefined) assert(size === options.sizeBytes, 'struct has not the size its header states');
  return { name, sizeBytes: size, alignBytes, at: at as Record<keyof F & string, number>, fields };
}
