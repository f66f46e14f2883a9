// A directory as an ext4 file system in a file, without root: mkfs.ext4 copies it in (-d), and debugfs gives every file the
// owner and permissions that it is to have, wherever they are not those of the host's file. Both are of e2fsprogs, and
// neither mounts anything. In the end fsck.ext4 judges the result.
//
//   tree ──mkfs.ext4 -d──► image, files owned by whoever ran it ──debugfs set_inode_field──► owned by root and others

import { constants } from 'node:fs';
import { access, lstat, open, readdir, rm } from 'node:fs/promises';
import { delimiter, join } from 'node:path';
import { ZazenError } from '../base/errors.ts';
import { runTool } from './run-tool.ts';
import type { ToolResult } from './run-tool.ts';

export interface Ext4Options {
  /** At most 16 characters. */
  readonly label: string;
  readonly sizeBytes: number;
  /** Of paths in the tree; everything else belongs to root, with the permissions that it has on the host. */
  readonly owners?: readonly { readonly path: string; readonly mode: number; readonly uid: number; readonly gid: number }[];
  readonly signal?: AbortSignal | undefined;
}

/** Where system programs are, also for those who do not have it in their path. */
const SYSTEM_DIRS = ['/usr/sbin', '/sbin', '/usr/local/sbin'];

const programDirs = (): string[] =>
  [...(process.env['PATH'] ?? '').split(delimiter).filter((part) => part !== ''), ...SYSTEM_DIRS];

/** @throws ZazenError ZAZEN_GUEST_TOOL when e2fsprogs is in none of `dirs` */
export async function findE2fsprogs(dirs = programDirs()): Promise<Record<'mkfs' | 'debugfs' | 'fsck', string>> {
  const find = async (name: string): Promise<string> => {
    for (const dir of dirs) {
      const file = join(dir, name);
      if (await access(file, constants.X_OK).then(() => true, () => false)) return file;
    }
    throw new ZazenError('ZAZEN_GUEST_TOOL', `${name} is needed to make an ext4 file system, and is not installed`,
      { hint: 'install e2fsprogs (Debian: apt-get install e2fsprogs)' });
  };
  return { mkfs: await find('mkfs.ext4'), debugfs: await find('debugfs'), fsck: await find('fsck.ext4') };
}

/**
 * Makes the file at `path`, which must not be there; sparse, so that only what is used takes space.
 * @throws ZazenError ZAZEN_GUEST_TOOL, ZAZEN_ROOT_EXISTS, ZAZEN_ROOT_SIZE, ZAZEN_ROOT_IMAGE
 */
export async function makeExt4(tree: string, path: string, options: Ext4Options): Promise<void> {
  const { label, sizeBytes, owners = [], signal } = options;
  const tools = await findE2fsprogs();
  const commands = await ownerCommands(tree, owners);
  await makeEmpty(path, sizeBytes);
  try {
    const run = (tool: string, args: readonly string[]): Promise<ToolResult> => runTool(tool, args, { cwd: tree, signal });
    const made = await run(tools.mkfs, ['-q', '-F', '-m', '1', '-L', label, '-E', 'root_owner=0:0', '-d', tree, path]);
    if (made.status !== 0) throw mkfsFailure(made, sizeBytes);
    await setOwners(tools.debugfs, path, commands, run);
    const checked = await run(tools.fsck, ['-f', '-n', path]);
    if (checked.status !== 0) throw failure('the file system is not in order', checked);
  } catch (error) {
    await rm(path, { force: true });
    throw error;
  }
}

export const alreadyThere = (path: string): ZazenError =>
  new ZazenError('ZAZEN_ROOT_EXISTS', `${path} is there already`, { hint: 'remove it, or give another name' });

async function makeEmpty(path: string, sizeBytes: number): Promise<void> {
  const file = await open(path, 'wx', 0o644).catch((cause: NodeJS.ErrnoException) => {
    if (cause.code === 'EEXIST') throw alreadyThere(path);
    throw new ZazenError('ZAZEN_ROOT_IMAGE', `cannot make ${path}: ${cause.message}`, { cause });
  });
  try {
    await file.truncate(sizeBytes);
  } finally {
    await file.close();
  }
}

function mkfsFailure(result: ToolResult, sizeBytes: number): ZazenError {
  const { stdout, stderr } = result;
  if (/No space left|Could not allocate (block|inode)|too small|not enough space/i.test(stdout + stderr)) {
    return new ZazenError('ZAZEN_ROOT_SIZE', `the files do not fit into ${Math.floor(sizeBytes / 2 ** 20)} MiB`,
      { hint: 'give it a larger --size' });
  }
  return failure('mkfs.ext4 failed', result);
}

function failure(what: string, { status, stdout, stderr }: ToolResult): ZazenError {
  const lines = `${stderr}\n${stdout}`.split('\n').map((line) => line.trim());
  // Each of these programs begins with its name and version.
  const reason = lines.find((line) => line !== '' && !/^\S+ \d/.test(line)) ?? `exit status ${status}`;
  return new ZazenError('ZAZEN_ROOT_IMAGE', `${what}: ${reason}`);
}

/** Commands for debugfs that make up for what a host's file says of owner and permissions. */
async function ownerCommands(tree: string, owners: NonNullable<Ext4Options['owners']>): Promise<string[]> {
  const wanted = new Map(owners.map((owner) => [owner.path, owner]));
  // mkfs.ext4 does not look at the directory itself.
  const commands = ['set_inode_field / mode 040755', 'set_inode_field / uid 0', 'set_inode_field / gid 0'];
  for (const path of (await readdir(tree, { recursive: true })).toSorted()) {
    const { mode, uid, gid } = await lstat(join(tree, path));
    const { mode: wantedMode = mode & 0o7777, uid: wantedUid = 0, gid: wantedGid = 0 } = wanted.get(path) ?? {};
    const name = quoted(path);
    if (wantedMode !== (mode & 0o7777)) {
      commands.push(`set_inode_field ${name} mode 0${((mode & ~0o7777) | wantedMode).toString(8)}`);
    }
    if (wantedUid !== uid) commands.push(`set_inode_field ${name} uid ${wantedUid}`);
    if (wantedGid !== gid) commands.push(`set_inode_field ${name} gid ${wantedGid}`);
  }
  return commands;
}

/** In double quotes debugfs takes every character but itself, and a line ends the command. */
function quoted(path: string): string {
  if (/[\n\r\0]/.test(path)) throw new ZazenError('ZAZEN_ROOT_IMAGE', `a file cannot have the name "${path}"`);
  return `"/${path.replaceAll('"', '""')}"`;
}

async function setOwners(
  debugfs: string, path: string, commands: readonly string[],
  run: (tool: string, args: readonly string[]) => Promise<ToolResult>,
): Promise<void> {
  const scriptPath = `${path}.debugfs`;
  const script = await open(scriptPath, 'wx', 0o600);
  try {
    await script.writeFile(`${commands.join('\n')}\n`);
    const result = await run(debugfs, ['-w', '-f', scriptPath, path]);
    // It ends with status 0 whatever went wrong; only its first line, the version, is no complaint.
    const complaint = result.stderr.split('\n').slice(1).find((line) => line.trim() !== '');
    if (result.status === 0 && complaint === undefined) return;
    throw failure('debugfs failed', { ...result, stderr: complaint ?? '' });
  } finally {
    await script.close();
    await rm(scriptPath, { force: true });
  }
}
