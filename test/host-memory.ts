// How much memory the hosts of whole-system tests have, where it does not matter to the test.
//
//   ZAZEN_TEST_MEMORY=8GiB   that much, instead of what each file says: from 4 GiB on addresses are of 64 bits

export function hostMemory<T extends string | number | undefined>(usual: T): string | T {
  return process.env['ZAZEN_TEST_MEMORY'] ?? usual;
}
