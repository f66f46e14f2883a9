// Disk files without a guest: `disk create`, `disk info`, `disk check`, `disk convert`.

import { rmSync } from 'node:fs';
import { realpath } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { UsageError, ZazenError } from '../base/errors.ts';
import { BlockFile } from '../devices/block/block-file.ts';
import { referenceTo } from '../devices/block/chain.ts';
import { copyState, copyToRaw } from '../devices/block/copying.ts';
import { asDiskError } from '../devices/block/errors.ts';
import { Layer } from '../devices/block/layer.ts';
import { formatOf, openState } from '../devices/block/open-disk.ts';
import type { DiskFormat } from '../devices/block/open-disk.ts';
import { parseSize } from '../host/size.ts';
import type { Arguments } from './arguments.ts';
import type { Io } from './io.ts';
import { formatTable } from './table.ts';
import { JSON_OPTION, printJson } from './verb.ts';
import type { Verb } from './verb.ts';

const FILE = { name: 'FILE' };
const FORMAT = { value: 'FORMAT', short: 'f', help: 'raw or layer' };

function readFormat({ values }: Arguments): DiskFormat | undefined {
  const format = values['format'];
  if (format === undefined || format === 'raw' || format === 'layer') return format;
  throw new UsageError(`--format takes raw or layer, not "${format}"`);
}

const createVerb: Verb = {
  name: 'disk create',
  summary: 'Make an empty disk, or a layer on top of another disk.',
  details: 'SIZE is such as 4GiB; a layer on top of another disk has the size of that unless given.',
  positionals: [FILE, { name: 'SIZE', optional: true }],
  options: {
    format: { ...FORMAT, help: 'raw, or layer (default with --backing)' },
    backing: { value: 'FILE', short: 'b', help: 'what the layer lies on; it must not change from then on' },
  },
  async run(args, io) {
    const [file, size] = args.positionals as [string, string?];
    const path = resolve(file);
    const backingPath = args.values['backing'];
    const format = readFormat(args) ?? (backingPath === undefined ? 'raw' : 'layer');
    const wanted = size === undefined ? undefined : parseSize(size, 'the disk\'s size');
    if (backingPath === undefined) {
      if (wanted === undefined) throw new UsageError('disk create needs SIZE, or --backing FILE');
      if (format === 'layer') await fillNew(await Layer.create(path, { sizeBytes: wanted }), path, io, async () => {});
      else await fillNew(await BlockFile.open(path, 'create'), path, io, (raw) => raw.truncate(wanted));
      return 0;
    }
    if (format === 'raw') throw new UsageError('a raw disk lies on nothing', 'leave out --backing, or give --format layer');
    const below = await realpath(backingPath).catch(() => resolve(backingPath));
    const state = await openState({ path: below, isReadOnly: true });
    try {
      const backing = await referenceTo(state.node.store, dirname(path));
      await fillNew(await Layer.create(path, { sizeBytes: wanted ?? state.sizeBytes, backing }), path, io, async () => {});
    } finally {
      await state.release();
    }
    return 0;
  },
};

const infoVerb: Verb = {
  name: 'disk info',
  summary: 'Tell what a disk is, and what it lies on.',
  positionals: [FILE],
  options: { json: JSON_OPTION },
  async run(args, io) {
    const path = resolve(args.positionals[0]!);
    const state = await openState({ path, isReadOnly: true });
    try {
      const files: { path: string; format: string; fileBytes: number; dataBytes?: number; uuid?: string }[] = [];
      for (let node: typeof state.node | undefined = state.node; node !== undefined; node = node.below) {
        const { store } = node;
        files.push({
          path: store.file.path, format: store.kind, fileBytes: store.file.sizeBytes,
          ...(store instanceof Layer ? { dataBytes: store.dataBytes, uuid: store.header.uuid } : {}),
        });
      }
      if (args.switches.has('json')) printJson(io, { path, sizeBytes: state.sizeBytes, files });
      else {
        io.stdout.write(formatTable([
          ['size', `${state.sizeBytes} bytes`],
          ...files.map((file, i): [string, string] => [i === 0 ? 'file' : 'lies on',
            `${file.path} (${file.format}${file.dataBytes === undefined ? '' : `, ${file.dataBytes} bytes of data`})`]),
        ]));
      }
      return 0;
    } finally {
      await state.release();
    }
  },
};

const checkVerb: Verb = {
  name: 'disk check',
  summary: 'Check the records of a disk\'s layers, and that they lie on what they should; exits with 1 if not.',
  positionals: [FILE],
  options: {},
  async run(args, io) {
    // Opening judges every record.
    (await openState({ path: resolve(args.positionals[0]!), isReadOnly: true })).release();
    io.stdout.write('no damage found\n');
    return 0;
  },
};

const convertVerb: Verb = {
  name: 'disk convert',
  summary: 'Copy a disk with all that it lies on into one file.',
  positionals: [FILE, { name: 'NEWFILE' }],
  options: { format: FORMAT },
  async run(args, io) {
    const [from, to] = args.positionals.map((file) => resolve(file)) as [string, string];
    const format = readFormat(args) ?? (await formatOf(from) === 'raw' ? 'layer' : 'raw');
    const state = await openState({ path: from, isReadOnly: true });
    try {
      if (from === to) throw new ZazenError('ZAZEN_DISK_SPEC', 'a disk cannot be converted into itself');
      if (format === 'raw') await fillNew(await BlockFile.open(to, 'create'), to, io, (raw) => copyToRaw(state, raw, io.signal));
      else {
        const made = await Layer.create(to, { sizeBytes: state.sizeBytes });
        await fillNew(made, to, io, (layer) => copyState(state, layer, undefined, io.signal));
      }
    } finally {
      await state.release();
    }
    return 0;
  },
};

/** Has a file that was just made filled, and closes it; where that fails or is ended before its time, it is removed. */
async function fillNew<F extends { close(): Promise<void> }>(file: F, path: string, io: Io, fill: (file: F) => Promise<void>): Promise<void> {
  let isComplete = false;
  const removeUnlessComplete = io.onExit(() => {
    if (!isComplete) rmSync(path, { force: true });
  });
  try {
    await fill(file);
    await file.close();
    isComplete = true;
  } catch (error) {
    await file.close().catch(() => {});
    io.signal.throwIfAborted();
    throw asDiskError(path, error);
  } finally {
    removeUnlessComplete();
  }
}

export const diskVerbs: readonly Verb[] = [createVerb, infoVerb, checkVerb, convertVerb];
