// Imports between the files of this program are made cheap: what is named by a relative path and ends as this file does is
// at that path. Node would look for each of them in the file system, for links on the way to it and for the package that it
// belongs to: a good third of what it takes to load the some two hundred files of a thread (docs/performance.md). Everything
// else, of this program or not, is looked for as ever.

import { registerHooks } from 'node:module';
import { dirname } from 'node:path';
import { pathToFileURL } from 'node:url';

const SOURCES = `${pathToFileURL(dirname(import.meta.dirname)).href}/`;
const SUFFIX = import.meta.url.slice(import.meta.url.lastIndexOf('.'));
const FORMAT = SUFFIX === '.ts' ? 'module-typescript' : 'module';

/** For this thread, from the next import on. For threads and programs of our own: it is not for a library to say how its user's files are found. */
export function importOwnQuickly(): void {
  registerHooks({
    resolve(specifier, context, resolve) {
      const { parentURL = '' } = context;
      if (!specifier.startsWith('.') || !specifier.endsWith(SUFFIX) || !parentURL.startsWith(SOURCES)) return resolve(specifier, context);
      return { url: new URL(specifier, parentURL).href, format: FORMAT, shortCircuit: true };
    },
  });
}
