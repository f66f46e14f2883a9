// `zazen image info|verify`: look at images without any host. What a file says is hostile, also to a terminal.

import { formatSize } from '../host/size.ts';
import { openImage } from '../image/image.ts';
import type { Image } from '../image/image.ts';
import { Vmcoreinfo } from '../image/guest-kernel/vmcoreinfo.ts';
import type { VerifyResult } from '../image/verify.ts';
import { ZazenError } from '../base/errors.ts';
import type { Arguments } from './arguments.ts';
import { say } from './io.ts';
import type { Io } from './io.ts';
import { progressBar } from './progress.ts';
import { formatTable } from './table.ts';
import { JSON_OPTION, printJson } from './verb.ts';
import type { Verb } from './verb.ts';

const FILE = { name: 'FILE' };

const imageInfoVerb: Verb = {
  name: 'image info',
  summary: 'Show what is in an image that save or dump-core made.',
  positionals: [FILE],
  options: { json: JSON_OPTION },
  run: showImage,
};

const imageVerifyVerb: Verb = {
  name: 'image verify',
  summary: 'Read every byte of an image, and of the images that it builds on, and look for damage.',
  positionals: [FILE],
  options: { json: JSON_OPTION },
  run: verifyImage,
};

export const imageVerbs: readonly Verb[] = [imageInfoVerb, imageVerifyVerb];

async function showImage({ positionals, switches }: Arguments, io: Io): Promise<number> {
  const path = positionals[0]!;
  await using image = await openImage(path, { parents: false });
  const facts = { ...collectFacts(image), chain: image.header.parent === undefined ? undefined : await findChain(path) };
  if (switches.has('json')) printJson(io, facts);
  else io.stdout.write(describeFacts(facts));
  return 0;
}

/** The images that one builds on, its parent first; or why it is of no use: whoever looks may not have them all. */
async function findChain(path: string) {
  try {
    await using image = await openImage(path);
    const parents: { path: string; id: string; storedPages: number }[] = [];
    for (let one = image.parent; one !== undefined; one = one.parent) {
      parents.push({ path: one.path, id: one.header.id, storedPages: one.storedPages });
    }
    return { parents };
  } catch (error) {
    if (error instanceof ZazenError) return { problem: error.message };
    throw error;
  }
}

type Facts = ReturnType<typeof collectFacts> & { readonly chain: Awaited<ReturnType<typeof findChain>> | undefined };

function collectFacts(image: Image) {
  const { id, createdMillis, parent, domain } = image.header;
  return {
    path: image.path, version: image.version, id, digest: image.digest, createdMillis, fileBytes: image.fileBytes,
    domain, parent, banks: image.banks, pages: image.pageCounts(),
    vcpus: image.vcpus.map(({ pc, sp, pstate }) => ({ pc: hex(pc), sp: hex(sp), pstate: hex(pstate) })),
    sections: [...image.sections].map(([name, bytes]) => ({ name, sizeBytes: bytes.length })),
    vmcoreinfo: image.vmcoreinfo === undefined ? undefined : new TextDecoder().decode(image.vmcoreinfo),
    kernelRelease: image.vmcoreinfo && Vmcoreinfo.parse(image.path, image.vmcoreinfo)?.release,
  };
}

const hex = (value: bigint) => `0x${value.toString(16).padStart(16, '0')}`;

/** Control characters of a file do not reach the terminal. */
export const harmless = (text: string) => text.replaceAll(/\p{Cc}/gu, '?');

function describeFacts(facts: Facts): string {
  const { domain, parent, pages } = facts;
  const created = new Date(facts.createdMillis);
  return formatTable([
    ['image', harmless(facts.path)],
    ['version', String(facts.version)],
    ['id', facts.id],
    ['created', Number.isNaN(created.getTime()) ? 'unknown' : created.toISOString()],
    ...Object.entries(domain).map(([name, value]) =>
      [harmless(name), harmless(typeof value === 'string' ? value : JSON.stringify(value))] as const),
    ['memory', facts.banks.map(({ guestAddress, sizeBytes }) =>
      `${formatSize(sizeBytes)} at ${hex(BigInt(guestAddress))}`).join('\n')],
    ['pages', `${pages.stored} stored, ${pages.zero} zero, ${pages.parent} in the parent`],
    ['file size', `${facts.fileBytes} bytes with holes`],
    ['parent', parent === undefined ? 'none' : `${harmless(parent.path)}, id ${parent.id}`],
    ...(facts.chain === undefined ? [] : [['builds on', describeChain(facts.chain)] as const]),
    ['kernel', facts.kernelRelease === undefined ? 'unknown' : harmless(facts.kernelRelease)],
    ['vcpus', facts.vcpus.map(({ pc }) => `pc ${pc}`).join('\n') || 'none'],
    ['state', facts.sections.map(({ name, sizeBytes }) => `${name}: ${sizeBytes} bytes`).join('\n') || 'none'],
  ]);
}

function describeChain({ parents, problem }: NonNullable<Facts['chain']>): string {
  if (parents === undefined) return harmless(problem);
  return parents.map(({ path, id, storedPages }) => `${harmless(path)}: ${storedPages} stored, id ${id}`).join('\n');
}

async function verifyImage({ positionals, switches }: Arguments, io: Io): Promise<number> {
  await using image = await openImage(positionals[0]!);
  const started = performance.now();
  const result = await verifyWithBar(image, io);
  const millis = performance.now() - started;
  if (result.problemCount > 0) {
    for (const { path, message } of result.problems) say(io, harmless(`image ${path}: ${message}`));
    throw new ZazenError('ZAZEN_IMAGE_CHECKSUM', `image ${image.path}: ${result.problemCount} of its pages are damaged`,
      { hint: 'do not use it; copy it again from where it was good' });
  }
  if (switches.has('json')) printJson(io, { path: image.path, intact: true, ...result, millis });
  else io.stdout.write(`${harmless(image.path)} is intact: ${result.pagesChecked} pages, ${result.bytesRead} bytes\n`);
  return 0;
}

/** One bar for all files of the chain, which are read one after the other. */
async function verifyWithBar(image: Image, io: Io): Promise<VerifyResult> {
  let total = 0;
  for (let one: Image | undefined = image; one !== undefined; one = one.parent) total += one.fileBytes;
  let current = image.path;
  let before = 0;
  let last = 0;
  using bar = progressBar(io, 'verify');
  return await image.verify({
    signal: io.signal,
    onProgress({ path, bytesDone }) {
      if (path !== current) {
        before += last;
        current = path;
      }
      last = bytesDone;
      bar.show({ done: before + bytesDone, total });
    },
  });
}
