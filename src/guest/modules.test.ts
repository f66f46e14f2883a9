import { test } from 'node:test';
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import fc from 'fast-check';
import { ZazenError } from '../base/errors.ts';
import { moduleDependencies, moduleName, modulesInLoadOrder } from './modules.ts';

/** An ELF64 file with a section .modinfo. */
function makeModule(modinfo: string[]): Buffer {
  const names = Buffer.from('\0.shstrtab\0.modinfo\0');
  const info = Buffer.from(modinfo.map((line) => `${line}\0`).join(''));
  const header = Buffer.alloc(64);
  header.write('\x7fELF\x02\x01\x01', 0, 'latin1');
  header.writeBigUInt64LE(BigInt(64 + names.length + info.length), 0x28);
  header.writeUInt16LE(64, 0x3a);
  header.writeUInt16LE(3, 0x3c);
  header.writeUInt16LE(1, 0x3e);
  const section = (name: number, offset: number, size: number): Buffer => {
    const entry = Buffer.alloc(64);
    entry.writeUInt32LE(name, 0);
    entry.writeBigUInt64LE(BigInt(offset), 0x18);
    entry.writeBigUInt64LE(BigInt(size), 0x20);
    return entry;
  };
  const sections = [section(0, 0, 0), section(1, 64, names.length), section(11, 64 + names.length, info.length)];
  return Buffer.concat([header, names, info, ...sections]);
}

test('a module says what it depends on', () => {
  const depends = (value: string): string[] => moduleDependencies(makeModule(['license=GPL', value, 'name=x']), 'x.ko');
  assert.deepEqual(depends('depends=xen-privcmd,b_c'), ['xen_privcmd', 'b_c']);
  assert.deepEqual(depends('depends='), []);
  assert.equal(moduleName('/a/b/xen-blkfront.ko.xz'), 'xen_blkfront');
});

test('modules are ordered after what they depend on, whatever they are packed with', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'zazen-modules-'));
  try {
    mkdirSync(join(dir, 'kernel/drivers'), { recursive: true });
    const put = (name: string, depends: string, pack: (bytes: Buffer) => Uint8Array = (bytes) => bytes): void =>
      writeFileSync(join(dir, 'kernel/drivers', name), pack(makeModule([`depends=${depends}`])));
    put('top-one.ko', 'mid,base');
    put('mid.ko.gz', 'base', gzipSync);
    put('base.ko.zst', '', zstdCompressSync);
    put('other.ko', 'top-one,loop');
    put('loop.ko', 'other');
    const { paths, missing } = await modulesInLoadOrder(dir, ['top_one', 'built-in', 'other', 'base']);
    const names = paths.map((path) => basename(path));
    assert.deepEqual(names, ['base.ko.zst', 'mid.ko.gz', 'top-one.ko', 'loop.ko', 'other.ko']);
    assert.deepEqual(missing, ['built_in']);
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test('damaged modules give names or a typed error', () => {
  const module = makeModule(['depends=a']);
  const changesArbitrary = fc.array(fc.tuple(fc.nat(module.length - 1), fc.nat(255)), { maxLength: 6 });
  fc.assert(
    fc.property(changesArbitrary, fc.nat(module.length), (changes, end) => {
      const bytes = Uint8Array.from(module.subarray(0, end));
      for (const [at, value] of changes) if (at < bytes.length) bytes[at] = value;
      try {
        assert(Array.isArray(moduleDependencies(bytes, 'x.ko')));
      } catch (error) {
        assert(error instanceof ZazenError && error.code === 'ZAZEN_GUEST_MODULE', String(error));
      }
    }),
    { numRuns: 300 },
  );
});
