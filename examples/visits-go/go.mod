module storeshim.example/visits

go 1.19
