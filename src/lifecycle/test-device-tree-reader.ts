// Reads a flattened device tree back, for tests: written from the specification, not from the writer, and strict about
// everything that the specification asks for.

import assert from 'node:assert/strict';

export interface ReadNode {
  name: string;
  /** Values in hexadecimal. */
  properties: Record<string, string>;
  children: ReadNode[];
}

export function readDeviceTree(bytes: Uint8Array): ReadNode {
  const blob = Buffer.from(bytes);
  const header = Array.from({ length: 10 }, (_, i) => blob.readUInt32BE(i * 4));
  const [magic, totalBytes, structureAt, stringsAt, reservedAt, version, compatible, bootCpu, stringsBytes,
    structureBytes] = header as [number, number, number, number, number, number, number, number, number, number];
  assert.deepEqual([magic, version, compatible, bootCpu], [0xd00dfeed, 17, 16, 0]);
  assert.ok(totalBytes <= blob.length);
  assert.equal(reservedAt % 8, 0);
  assert.equal(structureAt % 4, 0);
  assert.equal(blob.readBigUInt64BE(reservedAt) | blob.readBigUInt64BE(reservedAt + 8), 0n);
  assert.ok(reservedAt + 16 <= structureAt && structureAt + structureBytes <= stringsAt);
  assert.ok(stringsAt + stringsBytes <= totalBytes);

  let at = structureAt;
  const word = () => {
    at += 4;
    return blob.readUInt32BE(at - 4);
  };
  const stringAt = (offset: number) => blob.toString('latin1', offset, blob.indexOf(0, offset));
  const readNode = (): ReadNode => {
    const name = stringAt(at);
    at = structureAt + Math.ceil((at + name.length + 1 - structureAt) / 4) * 4;
    const node: ReadNode = { name, properties: {}, children: [] };
    for (;;) {
      const token = word();
      if (token === 2) return node;
      if (token === 1) node.children.push(readNode());
      else if (token === 3) {
        assert.equal(node.children.length, 0, 'properties come before children');
        const valueBytes = word();
        const nameAt = word();
        assert.ok(nameAt < stringsBytes);
        const property = stringAt(stringsAt + nameAt);
        assert.ok(!(property in node.properties), 'a property is there twice');
        node.properties[property] = blob.toString('hex', at, at + valueBytes);
        at += Math.ceil(valueBytes / 4) * 4;
      } else assert.equal(token, 4, 'unknown token');
    }
  };
  assert.equal(word(), 1);
  const root = readNode();
  assert.equal(word(), 9);
  assert.equal(at, structureAt + structureBytes);
  return root;
}

/** A node by its path, `/cpus/cpu@0`. */
export function nodeAt(root: ReadNode, path: string): ReadNode {
  let node = root;
  for (const name of path.split('/').slice(1)) {
    const child: ReadNode | undefined = node.children.find((candidate) => candidate.name === name);
    assert.ok(child !== undefined, `no ${name} in ${node.name}`);
    node = child;
  }
  return node;
}

export const hexOfCells = (...cells: number[]) => cells.map((cell) => cell.toString(16).padStart(8, '0')).join('');
export const hexOfStrings = (...strings: string[]) =>
  Buffer.from(strings.map((string) => `${string}\0`).join('')).toString('hex');
