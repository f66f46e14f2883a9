// Flattened device trees: what a guest's firmware would hand to its kernel (Devicetree Specification, version 17 of
// the format). Nodes are plain data; `writeDeviceTree` turns a tree of them into the blob.
//
//     0 ┌───────────────────┐
//       │ header            │ ten big-endian words: magic, sizes, offsets of what follows
//    40 ├───────────────────┤
//       │ reserved memory   │ (address, size) pairs of 64 bits; ended by a pair of zeros
//       ├───────────────────┤
//       │ structure block   │ tokens: BEGIN_NODE name, PROP length name-offset value, END_NODE, END; all 4-aligned
//       ├───────────────────┤
//       │ strings block     │ names of properties, each once
//       └───────────────────┘
//
// A tree is made by this host, so a bad name in it is a bug of ours, and asserted.

import { assert } from '../base/assert.ts';

/**
 * Value of a property: `true` has no bytes, strings end with a NUL each, numbers are cells of 32 bits, bytes are taken
 * as they are. A node in a list of cells stands for its phandle, which the writer hands out.
 */
export type PropertyValue = true | string | readonly string[] | readonly (number | DeviceTreeNode)[] | Uint8Array;

export interface DeviceTreeNode {
  /** With the unit address, if it has one: `memory@40000000`. Empty for the root. */
  readonly name: string;
  readonly properties: Readonly<Record<string, PropertyValue>>;
  readonly children?: readonly DeviceTreeNode[];
}

const MAGIC = 0xd00dfeed;
const VERSION = 17;
const LAST_COMPATIBLE_VERSION = 16;
const HEADER_BYTES = 40;
const RESERVED_MEMORY_BYTES = 16;
const BEGIN_NODE = 1;
const END_NODE = 2;
const PROP = 3;
const END = 9;
const NODE_NAME = /^[0-9a-zA-Z,._+-]{1,31}(@[0-9a-zA-Z,._+-]+)?$/;
const PROPERTY_NAME = /^[0-9a-zA-Z,._+?#-]{1,31}$/;

/** Two cells for each value below 2^53, as addresses and sizes of 64 bits are written. */
export function cells64(...values: readonly number[]): number[] {
  return values.flatMap((value) => {
    assert(Number.isSafeInteger(value) && value >= 0, 'not a value for two cells');
    return [Math.floor(value / 2 ** 32), value >>> 0];
  });
}

/** The blob of the tree under `root`, whose size is a multiple of 4. Written to memory, it must be 8-byte aligned. */
export function writeDeviceTree(root: DeviceTreeNode): Uint8Array {
  assert(root.name === '', 'the root has no name');
  const writer = new StructureWriter(phandlesOf(root));
  writer.node(root);
  writer.word(END);
  const structure = writer.bytes();
  const strings = writer.strings();
  const structureAt = HEADER_BYTES + RESERVED_MEMORY_BYTES;
  const stringsAt = structureAt + structure.length;
  const sizeBytes = alignUp(stringsAt + strings.length);
  const blob = Buffer.alloc(sizeBytes);
  const header = [
    MAGIC, sizeBytes, structureAt, stringsAt, HEADER_BYTES, VERSION, LAST_COMPATIBLE_VERSION, 0, strings.length,
    structure.length,
  ];
  header.forEach((word, i) => blob.writeUInt32BE(word, i * 4));
  blob.set(structure, structureAt);
  blob.set(strings, stringsAt);
  return blob;
}

const alignUp = (value: number) => Math.ceil(value / 4) * 4;

/** Numbers the nodes that values refer to, from 1, in the order in which they are referred to. */
function phandlesOf(root: DeviceTreeNode): Map<DeviceTreeNode, number> {
  const phandles = new Map<DeviceTreeNode, number>();
  const nodes = new Set<DeviceTreeNode>();
  const visit = (node: DeviceTreeNode) => {
    assert(!nodes.has(node), 'a node is in the tree twice');
    nodes.add(node);
    for (const value of Object.values(node.properties)) {
      if (!Array.isArray(value)) continue;
      for (const item of value) {
        if (typeof item === 'object' && !phandles.has(item)) phandles.set(item, phandles.size + 1);
      }
    }
    node.children?.forEach(visit);
  };
  visit(root);
  for (const node of phandles.keys()) assert(nodes.has(node), 'a value refers to a node that is not in the tree');
  return phandles;
}

class StructureWriter {
  readonly #phandles: ReadonlyMap<DeviceTreeNode, number>;
  readonly #chunks: Uint8Array[] = [];
  readonly #nameOffsets = new Map<string, number>();
  #stringsBytes = 0;

  constructor(phandles: ReadonlyMap<DeviceTreeNode, number>) {
    this.#phandles = phandles;
  }

  node(node: DeviceTreeNode, siblings: Set<string> = new Set()): void {
    assert(node.name === '' || NODE_NAME.test(node.name), 'not a name for a node');
    assert(!siblings.has(node.name), 'two nodes with one name');
    siblings.add(node.name);
    this.word(BEGIN_NODE);
    this.#padded(Buffer.from(`${node.name}\0`, 'latin1'));
    for (const [name, value] of Object.entries(node.properties)) this.#property(name, this.#valueBytes(value));
    const phandle = this.#phandles.get(node);
    if (phandle !== undefined) {
      assert(node.properties['phandle'] === undefined, 'phandles are handed out by the writer');
      this.#property('phandle', this.#valueBytes([phandle]));
    }
    const names = new Set<string>(['']);
    for (const child of node.children ?? []) this.node(child, names);
    this.word(END_NODE);
  }

  word(value: number): void {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32BE(value);
    this.#chunks.push(bytes);
  }

  bytes(): Uint8Array {
    return Buffer.concat(this.#chunks);
  }

  strings(): Uint8Array {
    return Buffer.from([...this.#nameOffsets.keys()].map((name) => `${name}\0`).join(''), 'latin1');
  }

  #property(name: string, value: Uint8Array): void {
    assert(PROPERTY_NAME.test(name), 'not a name for a property');
    let offset = this.#nameOffsets.get(name);
    if (offset === undefined) {
      offset = this.#stringsBytes;
      this.#nameOffsets.set(name, offset);
      this.#stringsBytes += name.length + 1;
    }
    this.word(PROP);
    this.word(value.length);
    this.word(offset);
    this.#padded(value);
  }

  #padded(bytes: Uint8Array): void {
    this.#chunks.push(bytes, new Uint8Array(alignUp(bytes.length) - bytes.length));
  }

  #valueBytes(value: PropertyValue): Uint8Array {
    if (value === true) return new Uint8Array(0);
    if (value instanceof Uint8Array) return value;
    if (typeof value === 'string') return this.#stringBytes([value]);
    if (typeof value[0] === 'string') return this.#stringBytes(value as readonly string[]);
    const bytes = Buffer.alloc(value.length * 4);
    (value as readonly (number | DeviceTreeNode)[]).forEach((item, i) => {
      bytes.writeUInt32BE(typeof item === 'number' ? item : this.#phandles.get(item)!, i * 4);
    });
    return bytes;
  }

  #stringBytes(strings: readonly string[]): Uint8Array {
    for (const string of strings) assert(!string.includes('\0'), 'a string of a property has a NUL in it');
    return Buffer.from(strings.map((string) => `${string}\0`).join(''), 'utf8');
  }
}
