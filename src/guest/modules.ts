// Kernel modules: what each one is called and needs, read from the module file itself (section .modinfo of the ELF
// file), and the order in which to load a set of them. Debian's packages carry no modules.dep: it is made when they
// are installed, which we never do.

import { readFile, readdir } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { ZazenError } from '../base/errors.ts';
import { decompress } from './decompress.ts';

const moduleFile = /\.ko(\.xz|\.gz|\.zst)?$/;

/** The name the kernel knows a module by: that of its file, with `_` for `-`. */
export function moduleName(path: string): string {
  return basename(path).replace(moduleFile, '').replaceAll('-', '_');
}

/** The bytes of a module as insmod wants them; .ko.xz, .ko.gz and .ko.zst are unpacked. */
export async function readModule(path: string): Promise<Uint8Array> {
  return decompress(await readFile(path));
}

/**
 * Paths of the module files under `modulesDir` that are needed for `names`, in load order: every module after those
 * it depends on. Names that have no file are built into this kernel, or left out of it; `missing` lists them.
 */
export async function modulesInLoadOrder(
  modulesDir: string,
  names: readonly string[],
): Promise<{ paths: string[]; missing: string[] }> {
  const pathOf = new Map<string, string>();
  for (const path of await readdir(modulesDir, { recursive: true })) {
    if (moduleFile.test(path)) pathOf.set(moduleName(path), join(modulesDir, path));
  }
  const paths: string[] = [];
  const missing: string[] = [];
  const seen = new Set<string>();
  const visit = async (name: string): Promise<void> => {
    if (seen.has(name)) return;
    seen.add(name);
    const path = pathOf.get(name);
    if (path === undefined) {
      missing.push(name);
      return;
    }
    for (const dependency of moduleDependencies(await readModule(path), path)) await visit(dependency);
    paths.push(path);
  };
  for (const name of names) await visit(name.replaceAll('-', '_'));
  return { paths, missing };
}

/** The names in the `depends` entry of a module's .modinfo. */
export function moduleDependencies(module: Uint8Array, path: string): string[] {
  for (const entry of modinfo(module, path)) {
    if (entry.startsWith('depends=')) {
      return entry
        .slice('depends='.length)
        .split(',')
        .filter((name) => name !== '')
        .map((name) => name.replaceAll('-', '_'));
    }
  }
  return [];
}

/** The `key=value` strings of the section .modinfo of an ELF64 little-endian file. */
function modinfo(module: Uint8Array, path: string): string[] {
  const bad = (cause?: unknown): ZazenError =>
    new ZazenError('ZAZEN_GUEST_MODULE', `${path}: not a kernel module`, { cause });
  try {
    const view = Buffer.from(module.buffer, module.byteOffset, module.byteLength);
    if (view.readUInt32BE(0) !== 0x7f454c46 || view[4] !== 2 || view[5] !== 1) throw bad();
    const tableOffset = Number(view.readBigUInt64LE(0x28));
    const entryBytes = view.readUInt16LE(0x3a);
    const count = view.readUInt16LE(0x3c);
    const section = (index: number): { name: number; offset: number; size: number } => {
      const at = tableOffset + index * entryBytes;
      return {
        name: view.readUInt32LE(at),
        offset: Number(view.readBigUInt64LE(at + 0x18)),
        size: Number(view.readBigUInt64LE(at + 0x20)),
      };
    };
    const names = section(view.readUInt16LE(0x3e)).offset;
    for (let i = 0; i < count; i++) {
      const { name, offset, size } = section(i);
      if (view.toString('latin1', names + name, names + name + 9) === '.modinfo\0') {
        return view.toString('utf8', offset, offset + size).split('\0');
      }
    }
    return [];
  } catch (cause) {
    throw cause instanceof ZazenError ? cause : bad(cause);
  }
}
