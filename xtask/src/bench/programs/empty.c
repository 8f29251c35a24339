/* A library to be loaded by the program `calls`. */
int empty(void);
int empty(void) { return 0; }
