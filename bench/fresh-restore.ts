// One restore in a process that has not done anything before, for the benchmark `restore`: fresh-restore.ts IMAGE SAVED-AT

import { Host } from '../src/host/index.ts';
import { measureRestore } from './restored-guest.ts';
import type { SavedAt } from './restored-guest.ts';

const [path, savedAt] = process.argv.slice(2);
await using host = await Host.start();
const { sample } = await measureRestore(host, path!, JSON.parse(savedAt!) as SavedAt, {});
process.stdout.write(JSON.stringify(sample));
