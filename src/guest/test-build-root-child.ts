// Builds the root file system of build-root.test.ts as another user: `node FILE DIRECTORY`, with the packages in it.

import { join } from 'node:path';
import { makeExt4 } from './ext4-image.ts';
import type { PackageEntry } from './package-index.ts';
import { makeRootTree } from './root-tree.ts';

const dir = process.argv[2]!;
const packages = ['base.deb', 'tool.deb'].map((filename): PackageEntry =>
  ({ name: filename, version: '1', architecture: 'arm64', filename, sizeBytes: 0, sha256: '', depends: [] }));
const fetch = async (entries: readonly PackageEntry[], take: (path: string, entry: PackageEntry) => Promise<void>): Promise<void> => {
  for (const entry of entries) await take(join(dir, entry.filename), entry);
};
const { owners } = await makeRootTree({ fetch }, packages, dir);
await makeExt4(join(dir, 'tree'), join(dir, 'root.ext4'), { label: 'zazen-root', sizeBytes: 64 * 2 ** 20, owners });
