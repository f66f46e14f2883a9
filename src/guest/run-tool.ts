// Running a host tool to its end, with its output collected, and its failure turned into an operator's error.

import { spawn } from 'node:child_process';
import { ZazenError } from '../base/errors.ts';

export interface ToolResult {
  status: number;
  stdout: string;
  stderr: string;
}

/** True if the program `tool` can be started. */
export async function hasTool(tool: string): Promise<boolean> {
  return new Promise((resolve) => {
    const child = spawn(tool, ['--version'], { stdio: 'ignore' });
    child.on('error', () => resolve(false));
    child.on('exit', () => resolve(true));
  });
}

/**
 * Runs `tool` in the directory `cwd` and gives its status and output, in the C locale; rejects if it cannot be
 * started, is ended by a signal, or `signal` fires (which ends it).
 */
export async function runTool(
  tool: string,
  args: readonly string[],
  { cwd, signal }: { cwd: string; signal?: AbortSignal | undefined },
): Promise<ToolResult> {
  return new Promise((resolve, reject) => {
    const env = { ...process.env, LC_ALL: 'C', DEBIAN_FRONTEND: 'noninteractive' };
    const child = spawn(tool, args, { cwd, env, signal, stdio: ['ignore', 'pipe', 'pipe'] });
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text));
    child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
    child.on('error', reject);
    child.on('close', (status, signalName) => {
      if (status !== null) return resolve({ status, stdout, stderr });
      reject(new ZazenError('ZAZEN_GUEST_TOOL', `${tool} was ended by ${signalName}`));
    });
  });
}
