declare module "workerd" {
  /** Path of the binary. */
  const workerd: string | { default: string };
  export default workerd;
}
