// Where the verbs are: the first words of those of each file, and what loads it. So a verb loads only what it needs itself,
// which is most of the time that a verb takes which only speaks to a host.

import { UsageError } from '../base/errors.ts';
import { closest } from './arguments.ts';
import type { Verb } from './verb.ts';

interface VerbFile {
  /** Its verbs' first words. */
  readonly words: readonly string[];
  load(): Promise<readonly Verb[]>;
}

/** In the order of the help. */
export const VERB_FILES: readonly VerbFile[] = [
  { words: ['run'], load: async () => [(await import('./run.ts')).runVerb] },
  { words: ['daemon'], load: async () => [(await import('./daemon.ts')).daemonVerb] },
  { words: ['create'], load: async () => [(await import('./create.ts')).createVerb] },
  { words: ['list'], load: async () => [(await import('./list.ts')).listVerb] },
  { words: ['console'], load: async () => [(await import('./console.ts')).consoleVerb] },
  {
    words: ['pause', 'unpause', 'shutdown', 'reboot', 'suspend', 'resume', 'destroy'],
    load: async () => (await import('./domain-verbs.ts')).domainVerbs,
  },
  {
    words: ['checkpoint', 'checkpoints', 'rollback', 'fork', 'checkpoint-destroy'],
    load: async () => (await import('./checkpoint-verbs.ts')).checkpointVerbs,
  },
  { words: ['save', 'restore', 'dump-core'], load: async () => (await import('./saving-verbs.ts')).savingVerbs },
  {
    words: ['block-attach', 'block-detach', 'block-list', 'block-resize'],
    load: async () => (await import('./block-verbs.ts')).blockVerbs,
  },
  { words: ['sched-credit'], load: async () => [(await import('./sched-credit.ts')).schedCreditVerb] },
  {
    words: ['network-attach', 'network-detach', 'network-forward', 'network-list'],
    load: async () => (await import('./network-verbs.ts')).networkVerbs,
  },
  { words: ['top'], load: async () => [(await import('./top.ts')).topVerb] },
  { words: ['events'], load: async () => [(await import('./events.ts')).eventsVerb] },
  { words: ['store'], load: async () => (await import('./store.ts')).storeVerbs },
  { words: ['disk'], load: async () => (await import('./disk-verbs.ts')).diskVerbs },
  { words: ['image'], load: async () => (await import('./image.ts')).imageVerbs },
  { words: ['image'], load: async () => (await import('./image-guest.ts')).imageGuestVerbs },
  { words: ['info'], load: async () => [(await import('./info.ts')).infoVerb] },
  { words: ['guest'], load: async () => [(await import('./guest-fetch.ts')).guestFetchVerb] },
  { words: ['guest'], load: async () => [(await import('./guest-build.ts')).guestBuildVerb] },
  { words: ['bench'], load: async () => [(await import('./bench.ts')).benchVerb] },
];

const loadAll = async (files: readonly VerbFile[]): Promise<readonly Verb[]> =>
  (await Promise.all(files.map((file) => file.load()))).flat();

export const allVerbs = (): Promise<readonly Verb[]> => loadAll(VERB_FILES);

const verbsWith = (first: string): Promise<readonly Verb[]> => loadAll(VERB_FILES.filter(({ words }) => words.includes(first)));

/** Verbs of two words of which this is the first. */
export const familyOf = async (first: string): Promise<readonly Verb[]> =>
  (await verbsWith(first)).filter((verb) => verb.name.startsWith(`${first} `));

/** @throws UsageError if `words` begin with no verb */
export async function findVerb(words: readonly string[]): Promise<{ verb: Verb; rest: readonly string[] }> {
  const first = words[0]!;
  for (const verb of await verbsWith(first)) {
    const name = verb.name.split(' ');
    if (name.every((word, i) => words[i] === word)) return { verb, rest: words.slice(name.length) };
  }
  if (first.startsWith('-')) throw new UsageError(`unknown option ${first}; options follow the verb`);
  const family = (await familyOf(first)).map((verb) => verb.name.split(' ')[1]!);
  if (family.length > 0) throw new UsageError(`${first} needs one of: ${family.join(', ')}`, `see: zazen ${first} --help`);
  const nearest = closest(first, VERB_FILES.flatMap((file) => file.words));
  throw new UsageError(`there is no verb "${first}"${nearest === undefined ? '' : `; did you mean ${nearest}?`}`);
}
