// The JavaScript of a release: one file for each thread's program and a few that are read when they are needed, where a checkout
// has some four hundred sources, which takes a program that starts a host 0.2 s less (docs/decisions/2026-11-22-releases-in-bundles.md).
// All lie in one folder, two below that of the package, as sources do, so that a path relative to one of them means the same:
//
//   zazen.js    the program `zazen`: what comes before everything else, see src/cli/main.ts
//   index.js    the library
//   base.js, command-line.js, host.js, …    what these two read, the verbs among them; the name says what is in it
//   pcpu-worker.js, translator-worker.js, disk-worker.js, network-worker.js    threads; what they read is called pcpu-worker.….js
//   *.js.map    where each line comes from, without the sources themselves
//
// Nothing is made shorter or renamed, so that a stack can be read; packages are imported as ever, and none is in here.

import { relative, join } from 'node:path';
import { rolldown } from 'rolldown';
import type { CodeSplittingGroup } from 'rolldown';

const ROOT = join(import.meta.dirname, '..');
const SOURCES = join(ROOT, 'src');

interface ThreadBundle {
  /** The files to make, without suffix, and what of `src` they are made of. */
  readonly entries: Readonly<Record<string, string>>;
  /** What begins the names of all other files. */
  readonly prefix: string;
  /**
   * Other files by name, and sources or folders of them that come there with all that they import, unless a part before has
   * that already. What is in no part is for the bundler to arrange.
   */
  readonly parts: Readonly<Record<string, readonly string[]>>;
}

const THREAD_BUNDLES: readonly ThreadBundle[] = [
  {
    entries: { zazen: 'cli/main.ts', index: 'host/index.ts' },
    prefix: '',
    // What verbs want of a host's code without a host is apart from it. What loads more of Node's own modules, at a millisecond each,
    // is apart from what every verb reads.
    parts: {
      base: [
        'base/abort.ts', 'base/cache-folder.ts', 'base/errors.ts', 'base/own-imports.ts', 'base/source-positions.ts',
        'host/pcpu-ahead.ts', 'host/size.ts', 'host/network-name.ts', 'network/port-forward.ts',
      ],
      tools: ['devices/block/hole-puncher.ts', 'guest/run-tool.ts'],
      'command-line': ['cli/program.ts', 'cli/hosts.ts'],
      abi: ['abi/'],
      guest: ['guest/initramfs.ts', 'guest/packages.ts'],
      disks: ['devices/block/open-disk.ts'],
      image: ['image/'],
      host: ['host/host.ts'],
    },
  },
  ...['pcpu-worker', 'translator-worker', 'disk-worker', 'network-worker'].map((name) => {
    return { entries: { [name]: `host/${name}.ts` }, prefix: `${name}.`, parts: {} };
  }),
];

/** Into `folder`, which is in one that lies in the package's. */
export async function writeBundles(folder: string): Promise<void> {
  for (const { entries, prefix, parts } of THREAD_BUNDLES) {
    await using bundle = await rolldown({
      cwd: ROOT,
      input: Object.fromEntries(Object.entries(entries).map(([name, source]) => [name, join(SOURCES, source)])),
      platform: 'node',
      external: (id) => !id.startsWith('.') && !id.startsWith('/'),
      onLog(level, log, handle) {
        // A verb that another one imports comes with that.
        if (log.code !== 'INEFFECTIVE_DYNAMIC_IMPORT') handle(level === 'warn' ? 'error' : level, log);
      },
    });
    await bundle.write({
      dir: folder,
      entryFileNames: '[name].js',
      chunkFileNames: `${prefix}[name].js`,
      codeSplitting: { groups: groupsOf(parts) },
      minifyInternalExports: false,
      comments: false,
      // V8 keeps a file of other characters in twice the memory.
      charset: 'ascii',
      sourcemap: true,
      sourcemapExcludeSources: true,
      // As if the sources were in the package: `src/cpu/engine.ts`.
      sourcemapPathTransform: (source, map) => join('../..', relative(ROOT, join(map, '..', source))),
    });
  }
}

function groupsOf(parts: ThreadBundle['parts']): CodeSplittingGroup[] {
  return Object.entries(parts).map(([name, roots], i, all) => {
    return { name, priority: all.length - i, test: (id) => roots.some((root) => id.startsWith(join(SOURCES, root))) };
  });
}
